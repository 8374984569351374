#include "storage/miss_ratio_curve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <list>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

namespace nqkv {
namespace {

uint64_t HashOf(uint64_t block) {
  uint64_t hash = (block + 1) * 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 31)) * 0xbf58476d1ce4e5b9;
  return hash ^ (hash >> 29);
}

// The hits of a least-recently-used cache, counted.
double LruHitRatio(const std::vector<uint64_t>& accesses, size_t blocks) {
  std::list<uint64_t> order;
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places;
  size_t hits = 0;
  for (const uint64_t block : accesses) {
    const auto found = places.find(block);
    if (found != places.end()) {
      ++hits;
      order.erase(found->second);
    } else if (places.size() >= blocks) {
      places.erase(order.back());
      order.pop_back();
    }
    order.push_front(block);
    places[block] = order.begin();
  }
  return static_cast<double>(hits) / static_cast<double>(accesses.size());
}

std::vector<uint64_t> ZipfAccesses(size_t blocks, size_t count, double exponent) {
  std::vector<double> weights(blocks);
  for (size_t rank = 0; rank < blocks; ++rank) weights[rank] = std::pow(static_cast<double>(rank + 1), -exponent);
  std::discrete_distribution<uint64_t> zipf(weights.begin(), weights.end());
  std::mt19937_64 random(17);
  std::vector<uint64_t> accesses(count);
  for (uint64_t& block : accesses) block = zipf(random);
  return accesses;
}

TEST(MissRatioCurveTest, IsExactWhileAllBlocksAreFollowed) {
  const std::vector<uint64_t> accesses = ZipfAccesses(1000, 50'000, 0.8);
  MissRatioCurve curve;
  for (const uint64_t block : accesses) curve.Record(HashOf(block));
  EXPECT_EQ(curve.accesses(), 50'000);
  for (const size_t blocks : {1, 2, 5, 20, 100, 500, 1000}) {
    EXPECT_NEAR(curve.HitRatio(blocks), LruHitRatio(accesses, blocks), 0.01) << blocks;
  }
}

TEST(MissRatioCurveTest, ComesCloseWithASample) {
  const std::vector<uint64_t> accesses = ZipfAccesses(100'000, 500'000, 0.7);
  MissRatioCurve curve(2000);
  for (const uint64_t block : accesses) curve.Record(HashOf(block));
  EXPECT_LE(curve.followed_blocks(), 2000u);
  for (const size_t blocks : {1000, 4000, 16'000, 64'000}) {
    EXPECT_NEAR(curve.HitRatio(blocks), LruHitRatio(accesses, blocks), 0.03) << blocks;
  }
}

TEST(MissRatioCurveTest, ALoopHitsOnlyWhereAllOfItFits) {
  MissRatioCurve curve(500);
  for (int round = 0; round < 40; ++round) {
    for (uint64_t block = 0; block < 10'000; ++block) curve.Record(HashOf(block));
  }
  EXPECT_LT(curve.HitRatio(5000), 0.1);
  EXPECT_GT(curve.HitRatio(20'000), 0.9);
}

TEST(MissRatioCurveTest, NothingIsHitBeforeAnAccessNorWithoutRoom) {
  MissRatioCurve curve;
  EXPECT_EQ(curve.HitRatio(100), 0);
  curve.Record(1);
  curve.Record(1);
  EXPECT_EQ(curve.HitRatio(0), 0);
  EXPECT_EQ(curve.HitRatio(1), 0.5);
}

TEST(MissRatioCurveTest, OldAccessesCountLess) {
  MissRatioCurve curve(1000, 10'000);
  for (uint64_t block = 0; block < 30'000; ++block) curve.Record(HashOf(block));  // None is hit.
  EXPECT_LE(curve.accesses(), 20'001);
  EXPECT_LT(curve.HitRatio(1000), 0.05);
  for (uint64_t i = 0; i < 100'000; ++i) curve.Record(HashOf(i % 50));  // All are.
  EXPECT_GT(curve.HitRatio(1000), 0.95);
}

TEST(MissRatioCurveTest, MayBeRecordedAndReadByManyThreads) {
  MissRatioCurve curve(100);
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&curve, thread] {
      for (uint64_t i = 0; i < 5000; ++i) {
        curve.Record(HashOf(i % 300 + thread));
        if (i % 100 == 0) curve.HitRatio(i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(curve.accesses(), 20'000);
  EXPECT_LE(curve.followed_blocks(), 100u);
}

}  // namespace
}  // namespace nqkv
