#include "tests/bench/sampler.h"

#include <time.h>

#include <algorithm>

namespace nqkv::bench {

namespace {

constexpr size_t kSampleBytes = size_t{64} << 20;  // At least a millisecond even at the speed of a cache.

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double GbPerSecond(const Job& job) {
  const size_t runs = std::max<size_t>(1, kSampleBytes / job.bytes);
  const double begin = ThreadSeconds();
  for (size_t i = 0; i < runs; ++i) job.run();
  const double seconds = ThreadSeconds() - begin;
  return 1e-9 * static_cast<double>(job.bytes * runs) / seconds;
}

}  // namespace

Sample Summarize(std::vector<double> rates) {
  std::sort(rates.begin(), rates.end());
  const double median = rates[rates.size() / 2];
  const double middle_half = rates[rates.size() * 3 / 4] - rates[rates.size() / 4];
  return {.gb_per_s = median, .spread_pct = 100 * middle_half / median};
}

std::vector<Sample> TakeSamples(const std::vector<Job>& jobs, size_t repeats) {
  std::vector<std::vector<double>> rates(jobs.size());
  for (const Job& job : jobs) job.run();
  for (size_t round = 0; round < repeats; ++round) {
    for (size_t j = 0; j < jobs.size(); ++j) rates[j].push_back(GbPerSecond(jobs[j]));
  }
  std::vector<Sample> samples;
  for (const std::vector<double>& job_rates : rates) samples.push_back(Summarize(job_rates));
  return samples;
}

}  // namespace nqkv::bench
