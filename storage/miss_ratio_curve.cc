#include "storage/miss_ratio_curve.h"

#include <algorithm>
#include <cmath>

namespace nqkv {

MissRatioCurve::MissRatioCurve(size_t blocks_max, uint64_t half_life)
    : blocks_max_(std::max<size_t>(1, blocks_max)), half_life_(std::max<uint64_t>(1, half_life)) {
  MutexLock lock(&mutex_);
  counts_.resize(4 * blocks_max_ + 1);
}

void MissRatioCurve::Record(uint64_t hash) {
  new_accesses_.fetch_add(1, std::memory_order_relaxed);
  if (hash > threshold_.load(std::memory_order_relaxed)) return;
  MutexLock lock(&mutex_);
  if (hash > threshold_.load(std::memory_order_relaxed)) return;  // It has sunk meanwhile.
  RecordFollowed(hash);
}

void MissRatioCurve::RecordFollowed(uint64_t hash) {
  accesses_ += static_cast<double>(new_accesses_.exchange(0, std::memory_order_relaxed));
  if (accesses_ > 2 * static_cast<double>(half_life_)) Halve();
  // Each followed access stands for so many.
  const double rate = std::ldexp(static_cast<double>(threshold_.load(std::memory_order_relaxed)) + 1, -64);
  if (now_ + 1 >= counts_.size()) Renumber();
  const auto [place, is_new] = times_.try_emplace(hash, 0);
  if (is_new) {
    hashes_.push(hash);
    first_accesses_ += 1 / rate;
  } else {
    // Blocks used since, itself included: a cache with room for so many holds it.
    const size_t since = times_.size() - CountUpTo(place->second) + 1;
    hits_[BucketOf(static_cast<double>(since) / rate)] += 1 / rate;
    AddAt(place->second, -1);
  }
  place->second = ++now_;
  AddAt(now_, 1);
  if (times_.size() > blocks_max_) ForgetHighest();
}

void MissRatioCurve::ForgetHighest() {
  const uint64_t highest = hashes_.top();
  hashes_.pop();
  const auto found = times_.find(highest);
  AddAt(found->second, -1);
  times_.erase(found);
  threshold_.store(highest - 1, std::memory_order_relaxed);
}

// Gives the last accesses the times from 1 on, in their order.
void MissRatioCurve::Renumber() {
  std::vector<std::pair<size_t, uint64_t>> order;
  order.reserve(times_.size());
  for (const auto& [hash, time] : times_) {
    if (time > 0) order.emplace_back(time, hash);
  }
  std::sort(order.begin(), order.end());
  std::fill(counts_.begin(), counts_.end(), 0);
  now_ = 0;
  for (const auto& [time, hash] : order) {
    times_[hash] = ++now_;
    AddAt(now_, 1);
  }
}

void MissRatioCurve::Halve() {
  for (double& hits : hits_) hits /= 2;
  first_accesses_ /= 2;
  accesses_ /= 2;
}

double MissRatioCurve::HitRatio(uint64_t blocks) const {
  MutexLock lock(&mutex_);
  double all = first_accesses_;
  for (const double hits : hits_) all += hits;
  const double truth = accesses_ + static_cast<double>(new_accesses_.load(std::memory_order_relaxed));
  if (truth <= 0 || blocks == 0) return 0;
  // What the sample has too many or too few are accesses to its few hottest blocks, which every cache hits.
  double hit = truth - all;
  const size_t bucket = BucketOf(static_cast<double>(blocks));
  for (size_t i = 0; i < bucket; ++i) hit += hits_[i];
  // Of the bucket that the size lies in, the share below it.
  const double low = std::exp2(static_cast<double>(bucket) / kBucketsAnOctave);
  const double high = std::exp2(static_cast<double>(bucket + 1) / kBucketsAnOctave);
  hit += hits_[bucket] * std::clamp((static_cast<double>(blocks) + 1 - low) / (high - low), 0.0, 1.0);
  return std::clamp(hit / truth, 0.0, 1.0);
}

double MissRatioCurve::accesses() const {
  MutexLock lock(&mutex_);
  return accesses_ + static_cast<double>(new_accesses_.load(std::memory_order_relaxed));
}

size_t MissRatioCurve::followed_blocks() const {
  MutexLock lock(&mutex_);
  return times_.size();
}

size_t MissRatioCurve::BucketOf(double distance) {
  const double bucket = std::log2(std::max(1.0, distance)) * kBucketsAnOctave;
  return std::min(static_cast<size_t>(bucket), kBuckets - 1);
}

void MissRatioCurve::AddAt(size_t time, int count) {
  for (; time < counts_.size(); time += time & (~time + 1)) counts_[time] += count;
}

size_t MissRatioCurve::CountUpTo(size_t time) const {
  int count = 0;
  for (; time > 0; time -= time & (~time + 1)) count += counts_[time];
  return static_cast<size_t>(count);
}

}  // namespace nqkv
