// The store alone: how fast blocks are found and replaced.
//
// lookup-prefix<n>: MatchPrefix of n-key prefixes among 2 million blocks, in random order, touching included;
// lookup-zipf<n>: prefixes that are asked for as often as Zipf's law says. put-evict: a new small block into a full
// store, which evicts one; nothing is encoded. restart: seconds until a store with a million blocks in a file on tmpfs
// is open again; the baseline is filling it. payload-share: bytes of blocks of a size in a full arena of 1 GiB, over
// the memory that the process took for it; the baseline is their share of the arena. /t<n> is the number of threads.
// Rates are millions a second: with one thread of its processor time, so that other processes that take the core away
// do not count; with several of wall time. The baseline of every case is the same with one thread in wall time, run in
// turns with it.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/report.h"

namespace nqkv::bench {

// Only the cases whose name contains `filter`.
std::vector<Row> RunStoreSuite(const std::string& filter, size_t repeats);

}  // namespace nqkv::bench
