#include "tests/bench/store_suite.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "storage/block_store.h"

namespace nqkv::bench {
namespace {

constexpr uint64_t kBlocks = 2'000'000;
constexpr uint64_t kPrefixKeys = 128;
constexpr uint64_t kPrefixes = kBlocks / kPrefixKeys;
constexpr uint64_t kBlockBytes = 1024;
constexpr PartRange kWhole = {.layer_begin = 0, .layer_end = 1, .head_begin = 0, .head_end = 1};

BlockKey KeyOf(uint64_t number) {
  char bytes[32] = {};
  std::memcpy(bytes, &number, sizeof(number));
  return *BlockKey::Create(0, 0, 0, {bytes, sizeof(bytes)});
}

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "nqkv-bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

void Put(BlockStore* store, uint64_t number) {
  absl::StatusOr<Reservation> reservation = store->Reserve(KeyOf(number), kWhole, kBlockBytes);
  if (!reservation.ok()) Fail(reservation.status());
  if (const absl::Status status = store->Commit(*std::move(reservation), kBlockBytes, {}); !status.ok()) Fail(status);
}

std::unique_ptr<BlockStore> MakeStore(uint64_t host_bytes) {
  auto store = BlockStore::Create({.host_bytes = host_bytes, .bytes_per_slot = kBlockBytes});
  if (!store.ok()) Fail(store.status());
  return *std::move(store);
}

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Millions a second: of wall time, and of the calling thread's processor time.
struct Rates {
  double wall = 0;
  double processor = 0;
};

// What `threads` threads do together, each `count` calls of work(thread, i) that count for `units` each.
Rates Measure(size_t threads, uint64_t count, uint64_t units, const std::function<void(size_t, uint64_t)>& work) {
  const auto begin = std::chrono::steady_clock::now();
  const double begin_processor = ThreadSeconds();
  std::vector<std::thread> others;
  const auto run = [&](size_t thread) {
    for (uint64_t i = 0; i < count; ++i) work(thread, i);
  };
  for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  const double processor = ThreadSeconds() - begin_processor;
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
  const double millions = 1e-6 * static_cast<double>(count * units);
  return {.wall = static_cast<double>(threads) * millions / wall.count(), .processor = millions / processor};
}

struct Summary {
  double median = 0;
  double spread_pct = 0;
};

Summary Summarize(std::vector<double> rates) {
  std::sort(rates.begin(), rates.end());
  const double median = rates[rates.size() / 2];
  return {median, 100 * (rates[rates.size() * 3 / 4] - rates[rates.size() / 4]) / median};
}

class StoreSuite {
 public:
  StoreSuite(const std::string& filter, size_t repeats) : filter_(filter), repeats_(repeats) {}

  // Runs the case with 1 to 8 threads in turns.
  void Run(const std::string& name, const std::function<Rates(size_t)>& measure) {
    std::vector<size_t> counts;
    for (const size_t threads : {1, 2, 4, 8}) {
      if (absl::StrContains(absl::StrCat(name, "/t", threads), filter_)) counts.push_back(threads);
    }
    if (counts.empty()) return;
    std::vector<double> alone;
    std::vector<std::vector<double>> together(counts.size());
    for (size_t repeat = 0; repeat < repeats_; ++repeat) {
      const Rates one = measure(1);
      alone.push_back(one.wall);
      for (size_t i = 0; i < counts.size(); ++i) {
        together[i].push_back(counts[i] == 1 ? one.processor : measure(counts[i]).wall);
      }
    }
    for (size_t i = 0; i < counts.size(); ++i) Add(name, counts[i], Summarize(together[i]), Summarize(alone).median);
  }

  bool Wants(const std::string& name) const {
    for (const size_t threads : {1, 2, 4, 8}) {
      if (absl::StrContains(absl::StrCat(name, "/t", threads), filter_)) return true;
    }
    return false;
  }

  bool WantsCase(const std::string& name) const { return absl::StrContains(name, filter_); }
  size_t repeats() const { return repeats_; }

  void AddSeconds(const std::string& name, const Summary& summary, const std::string& baseline, double baseline_value) {
    Row row = {.suite = "store", .name = name, .value = summary.median, .unit = "s", .baseline = baseline};
    row.baseline_value = baseline_value;
    row.repeats = repeats_;
    row.spread_pct = summary.spread_pct;
    rows_.push_back(row);
  }

  void AddPercent(const std::string& name, double share, const std::string& baseline, double baseline_share) {
    Row row = {.suite = "store", .name = name, .value = 100 * share, .unit = "%", .baseline = baseline};
    row.baseline_value = 100 * baseline_share;
    row.repeats = 1;
    rows_.push_back(row);
  }

  std::vector<Row> rows() { return std::move(rows_); }

 private:
  void Add(const std::string& name, size_t threads, const Summary& summary, double alone) {
    Row row = {.suite = "store", .name = absl::StrCat(name, "/t", threads), .value = summary.median, .unit = "M/s"};
    row.baseline = "t1";
    row.baseline_value = alone;
    row.repeats = repeats_;
    row.spread_pct = summary.spread_pct;
    row.threads = threads;
    rows_.push_back(row);
  }

  const std::string filter_;
  const size_t repeats_;
  std::vector<Row> rows_;
};

// Prefixes of keys that are all stored, their blocks spread over the memory in random order.
class Prefixes {
 public:
  Prefixes() : store_(MakeStore(kBlocks * kBlockBytes * 3 / 2)) {
    std::vector<uint64_t> order(kPrefixes * kPrefixKeys);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
    for (const uint64_t number : order) Put(store_.get(), number);
    keys_.reserve(order.size());
    for (uint64_t i = 0; i < order.size(); ++i) keys_.push_back(KeyOf(i));
  }

  void Match(uint64_t prefix) {
    const std::span<const BlockKey> keys = std::span(keys_).subspan(prefix * kPrefixKeys, kPrefixKeys);
    if (store_->MatchPrefix(keys, kWhole, nullptr) != kPrefixKeys) {
      Fail(absl::InternalError("a block that was stored is not found"));
    }
  }

 private:
  std::unique_ptr<BlockStore> store_;
  std::vector<BlockKey> keys_;
};

std::vector<uint32_t> RandomOrder(size_t seed) {
  std::vector<uint32_t> order(kPrefixes);
  for (uint32_t i = 0; i < kPrefixes; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

std::vector<uint32_t> ZipfOrder(size_t seed) {
  std::vector<double> weights(kPrefixes);
  for (size_t rank = 0; rank < weights.size(); ++rank) weights[rank] = std::pow(static_cast<double>(rank + 1), -0.99);
  std::discrete_distribution<uint32_t> zipf(weights.begin(), weights.end());
  const std::vector<uint32_t> names = RandomOrder(99);
  std::mt19937_64 random(seed);
  std::vector<uint32_t> order(kPrefixes);
  for (uint32_t& prefix : order) prefix = names[zipf(random)];
  return order;
}

void RunLookups(StoreSuite* suite) {
  struct Case {
    std::string name;
    std::vector<uint32_t> (*order)(size_t seed);
  };
  std::unique_ptr<Prefixes> prefixes;
  for (const Case& one : {Case{"lookup-prefix128", &RandomOrder}, Case{"lookup-zipf128", &ZipfOrder}}) {
    if (!suite->Wants(one.name)) continue;
    if (prefixes == nullptr) prefixes = std::make_unique<Prefixes>();
    std::vector<std::vector<uint32_t>> orders;
    for (size_t thread = 0; thread < 8; ++thread) orders.push_back(one.order(thread));
    suite->Run(one.name, [&](size_t threads) {
      return Measure(threads, kPrefixes / threads, kPrefixKeys,
                     [&](size_t thread, uint64_t i) { prefixes->Match(orders[thread][i]); });
    });
  }
}

void RunPutEvict(StoreSuite* suite) {
  if (!suite->Wants("put-evict")) return;
  constexpr uint64_t kHostBytes = uint64_t{256} << 20;
  constexpr uint64_t kPuts = 1'000'000;
  const std::unique_ptr<BlockStore> store = MakeStore(kHostBytes);
  uint64_t next = 0;
  while (store->Stats().evicted_blocks_total == 0) {
    for (int i = 0; i < 1000; ++i) Put(store.get(), next++);
  }
  suite->Run("put-evict", [&](size_t threads) {
    const uint64_t first = next;
    next += kPuts;
    return Measure(threads, kPuts / threads, 1,
                   [&](size_t thread, uint64_t i) { Put(store.get(), first + thread * (kPuts / threads) + i); });
  });
}

// A store of a million blocks in a file on tmpfs, left and opened again.
void RunRestart(StoreSuite* suite) {
  const std::string name = "restart/1M-blocks";
  if (!suite->WantsCase(name)) return;
  constexpr uint64_t kRestartBlocks = 1'000'000;
  const std::string path = absl::StrCat("/dev/shm/nqkv-bench-", getpid());
  const StorageOptions options = {.host_bytes = kRestartBlocks * kBlockBytes * 3 / 2,
                                  .arena_path = path,
                                  .warm_restart = true,
                                  .bytes_per_slot = kBlockBytes};
  const auto open = [&] {
    auto store = BlockStore::Create(options);
    if (!store.ok()) Fail(store.status());
    return *std::move(store);
  };
  const auto begin = std::chrono::steady_clock::now();
  std::unique_ptr<BlockStore> store = open();
  for (uint64_t number = 0; number < kRestartBlocks; ++number) Put(store.get(), number);
  const std::chrono::duration<double> fill = std::chrono::steady_clock::now() - begin;
  std::vector<double> seconds;
  for (size_t repeat = 0; repeat < suite->repeats(); ++repeat) {
    store.reset();
    const auto start = std::chrono::steady_clock::now();
    store = open();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    if (store->Stats().blocks != kRestartBlocks) Fail(absl::InternalError("blocks are missing after a restart"));
  }
  store.reset();
  unlink(path.c_str());
  suite->AddSeconds(name, Summarize(seconds), "fill", fill.count());
}

uint64_t ResidentBytes() {
  uint64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Bytes of blocks over what the process grew by, in a full store that was set up as the service does.
void RunPayloadShare(StoreSuite* suite) {
  for (const uint64_t block_bytes : {uint64_t{64} << 10, uint64_t{300'000}, uint64_t{2} << 20}) {
    const std::string name = absl::StrCat("payload-share/", block_bytes / 1024, "KiB");
    if (!suite->WantsCase(name)) continue;
    const uint64_t before = ResidentBytes();
    auto store = BlockStore::Create({.host_bytes = uint64_t{1} << 30, .huge_pages = false});
    if (!store.ok()) Fail(store.status());
    for (uint64_t number = 0; (*store)->Stats().evicted_blocks_total == 0; ++number) {
      auto reservation = (*store)->Reserve(KeyOf(number), kWhole, block_bytes);
      if (!reservation.ok()) Fail(reservation.status());
      std::memset(reservation->bytes().data(), 1, block_bytes);
      if (const absl::Status status = (*store)->Commit(*std::move(reservation), block_bytes, {}); !status.ok()) {
        Fail(status);
      }
    }
    const auto stored = static_cast<double>((*store)->Stats().stored_bytes);
    suite->AddPercent(name, stored / static_cast<double>(ResidentBytes() - before), "of-arena",
                      stored / static_cast<double>(uint64_t{1} << 30));
  }
}

}  // namespace

std::vector<Row> RunStoreSuite(const std::string& filter, size_t repeats) {
  StoreSuite suite(filter, repeats);
  RunLookups(&suite);
  RunPutEvict(&suite);
  RunRestart(&suite);
  RunPayloadShare(&suite);
  return suite.rows();
}

}  // namespace nqkv::bench
