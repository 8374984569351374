// The eviction policies as plain lists of equal blocks, with no stripes: what the store's order shall come close to.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <vector>

namespace nqkv {

// Not thread-safe.
class PolicyModel {
 public:
  // Holds up to `capacity` blocks, whose numbers are below `blocks`. `protected_share` is that of segmented LRU: a hit
  // block is protected while no more than this share is; 0 makes plain LRU.
  PolicyModel(uint64_t capacity, uint64_t blocks, double protected_share);

  // Serves one request's blocks, head first: returns how many leading ones are there, and stores the others. Its blocks
  // are used and stored from tail to head.
  size_t Serve(std::span<const uint32_t> blocks);

 private:
  enum Segment : uint8_t { kAbsent, kProbation, kProtected };
  struct Entry {
    Segment segment = kAbsent;
    std::list<uint32_t>::iterator place;
  };

  std::list<uint32_t>& ListOf(Segment segment) { return segment == kProtected ? protected_ : probation_; }
  void Add(Segment segment, uint32_t block);
  void Remove(uint32_t block);
  void Hit(uint32_t block);
  void Insert(uint32_t block);

  const uint64_t capacity_;
  const uint64_t protected_max_;
  const bool segmented_;
  std::vector<Entry> entries_;
  std::list<uint32_t> probation_;  // Newest first.
  std::list<uint32_t> protected_;
};

}  // namespace nqkv
