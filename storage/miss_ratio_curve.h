// What share of the accesses a least-recently-used cache of any size would hit, told from a sample while it runs.
//
// SHARDS (Waldspurger et al., FAST 2015) with a fixed number of samples: a block is followed when its hash is below a
// threshold, which sinks as more blocks are seen, so that time and memory are bounded whatever the number of blocks.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. An access to a block that is not followed costs one comparison and one addition.
class MissRatioCurve {
 public:
  // Follows at most `blocks_max` blocks, at about 100 bytes each. Accesses count half after every `half_life` more, so
  // that the curve is of these days.
  explicit MissRatioCurve(size_t blocks_max = 8192, uint64_t half_life = uint64_t{1} << 26);

  // A block was asked for. `hash` is the block's, evenly spread over all values.
  void Record(uint64_t hash) ABSL_LOCKS_EXCLUDED(mutex_);

  // The share of accesses that a cache with room for so many blocks would have hit. 0 before the first access.
  double HitRatio(uint64_t blocks) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Accesses that the curve stands for, older ones counted less.
  double accesses() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t followed_blocks() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Distances by size: 8 buckets an octave.
  static constexpr size_t kBucketsAnOctave = 8;
  static constexpr size_t kBuckets = 64 * kBucketsAnOctave;

  static size_t BucketOf(double distance);
  void RecordFollowed(uint64_t hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetHighest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Renumber() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Halve() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddAt(size_t time, int count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t CountUpTo(size_t time) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t blocks_max_;
  const uint64_t half_life_;
  std::atomic<uint64_t> threshold_ = UINT64_MAX;  // Hashes up to it are followed.
  std::atomic<uint64_t> new_accesses_ = 0;        // Since they were added to `accesses_`.

  mutable Mutex mutex_;
  absl::flat_hash_map<uint64_t, size_t> times_ ABSL_GUARDED_BY(mutex_);  // Of the last access, by hash.
  std::priority_queue<uint64_t> hashes_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> counts_ ABSL_GUARDED_BY(mutex_);  // A Fenwick tree: how many blocks were accessed last up to a time.
  size_t now_ ABSL_GUARDED_BY(mutex_) = 0;
  std::array<double, kBuckets> hits_ ABSL_GUARDED_BY(mutex_) = {};  // Accesses, by their distance from the last.
  double first_accesses_ ABSL_GUARDED_BY(mutex_) = 0;               // No cache hits those.
  double accesses_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nqkv
