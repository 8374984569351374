// Times jobs that take turns: each round runs every job once, so that a change of the machine's speed meets them all.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace nqkv::bench {

struct Job {
  std::string name;
  size_t bytes = 0;  // That one run handles.
  std::function<void()> run;
};

struct Sample {
  double gb_per_s = 0;  // Median.
  double spread_pct = 0;
};

// Median and spread. `rates` are in GB/s and not empty.
Sample Summarize(std::vector<double> rates);

// Runs each job once to warm up and then `repeats` times; a short job is run often enough to be timed. Time is the
// thread's processor time, so that other processes that take the core away do not count. One result a job.
std::vector<Sample> TakeSamples(const std::vector<Job>& jobs, size_t repeats);

}  // namespace nqkv::bench
