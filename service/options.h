// How the server is set up. Plain values with their defaults; flags.cc fills them, Validate() checks them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "storage/options.h"

namespace nqkv {

// Bounds on what one request, cache or stream may ask for. OpenCache tells clients those that concern them.
struct ServiceLimits {
  static constexpr int kLookupQueriesMax = 4'096;

  uint64_t message_bytes_max = uint64_t{32} << 20;  // Of one message, either way.
  uint64_t message_bytes_best = uint64_t{1} << 20;  // What Get aims at.
  uint64_t request_bytes_max = uint64_t{8} << 20;   // Of a request of any rpc but Put.
  uint32_t lookup_keys_max = 65'536;                // In one Lookup, over all chains.
  uint32_t get_keys_max = 4'096;
  uint32_t delete_keys_max = 65'536;
  uint32_t put_open_blocks_max = 64;                 // Begun and not ended on one stream.
  uint64_t block_raw_bytes_max = uint64_t{1} << 30;  // Of one block of a layer group, before encoding.
  uint32_t caches_max = 1'024;
  uint32_t shards_max = 4'096;                     // In one cache.
  uint64_t caches_bytes_max = uint64_t{64} << 20;  // What the open caches take beside their blocks.
  double read_seconds_max = 30;
  double heartbeat_seconds = 5;       // What a session is told to keep to.
  double session_grace_seconds = 15;  // A session that is silent for longer ends.
  double lease_seconds_default = 30;  // Of a lease that does not say.
  double lease_seconds_max = 300;
  uint32_t sessions_max = 4'096;
  uint32_t leases_max = 65'536;
  uint64_t leased_bytes_max = 0;             // Stored bytes that a tenant's leases may pin. 0: half of the arena.
  double lookup_wait_seconds_max = 60;       // That a Lookup may ask to wait.
  uint32_t lookup_waiters_max = 4'096;       // Lookups that may wait.
  uint32_t calls_max = 4'096;                // In flight, over all connections.
  uint32_t connection_calls_max = 1'024;     // In flight on one connection; more wait at the client.
  double connection_idle_seconds_max = 600;  // A connection with no call for longer is closed.
  double keepalive_seconds = 30;     // A connection with nothing to hear for so long is asked for a sign of life.
  double put_idle_seconds_max = 30;  // A Put stream that makes no progress for longer is ended.
};

struct Options {
  std::string listen = "127.0.0.1:6758";           // Workers: gRPC over TCP.
  std::string http_listen = "127.0.0.1:6759";      // Metrics, health, status. Empty: no HTTP.
  std::string socket_dir;                          // Of the Unix sockets. Empty: DefaultSocketDirectory().
  StorageOptions storage = {.host_bytes = 0};      // 0 bytes: DefaultHostBytes().
  std::string backend = "auto";                    // "auto", "cpu" or "cuda".
  uint32_t codec_threads = 0;                      // 0: one a core.
  uint32_t codec_queue_max = 4'096;                // Calls that may wait for a codec thread.
  uint64_t in_flight_bytes = uint64_t{256} << 20;  // Payload held by all calls together, outside the arena.
  // Memory of the store for blocks that are not whole yet, over all calls; they may evict so much and no more. 0: a
  // quarter of the store.
  uint64_t reserved_bytes_max = 0;
  double drain_seconds = 10;  // What is in flight at SIGTERM may take so long to end.
  std::string log_level = "info";
  ServiceLimits limits;

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

}  // namespace nqkv
