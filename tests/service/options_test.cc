#include "service/options.h"

#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "service/listen_address.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::function<void(Options*)>& change) {
  Options options;
  change(&options);
  return std::string(options.Validate().message());
}

TEST(OptionsTest, TheDefaultsAreValid) { EXPECT_TRUE(Options().Validate().ok()) << Options().Validate(); }

TEST(OptionsTest, NamesTheFlagThatIsWrong) {
  EXPECT_THAT(ErrorOf([](Options* o) { o->listen = "6758"; }), HasSubstr("--listen: '6758' is not host:port"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->http_listen = "x:99999"; }), HasSubstr("--http_listen"));
  EXPECT_EQ(ErrorOf([](Options* o) { o->http_listen = ""; }), "");
  EXPECT_THAT(ErrorOf([](Options* o) { o->backend = "cuda"; }), HasSubstr("--backend: cuda is not built yet"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->backend = "gpu"; }), HasSubstr("--backend: 'gpu' is none of"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->log_level = "loud"; }), HasSubstr("--log_level"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->in_flight_bytes = 1; }), HasSubstr("--in_flight_bytes"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->reserved_bytes_max = UINT64_MAX; }), HasSubstr("--reserved_bytes_max"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.message_bytes_max = 1; }), HasSubstr("--max_message_bytes"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.message_bytes_max = uint64_t{4} << 30; }),
              HasSubstr("--max_message_bytes"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.put_open_blocks_max = 0; }), HasSubstr("--put_open_blocks_max"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.read_seconds_max = 0; }), HasSubstr("--max_read_seconds"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.calls_max = 0; }), HasSubstr("--calls_max"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.connection_calls_max = 0; }), HasSubstr("--connection_calls_max"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.connection_idle_seconds_max = 0; }),
              HasSubstr("--max_connection_idle_seconds"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->limits.keepalive_seconds = 0.5; }), HasSubstr("--keepalive_seconds"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->drain_seconds = -1; }), HasSubstr("--drain_seconds"));
  EXPECT_THAT(ErrorOf([](Options* o) { o->codec_threads = 5'000; }), HasSubstr("--codec_threads"));
}

TEST(ListenAddressTest, ReadsHostsAndPorts) {
  EXPECT_EQ(ListenAddress::Parse("127.0.0.1:6758")->port, 6758);
  EXPECT_EQ(ListenAddress::Parse("[::1]:0")->host, "::1");
  EXPECT_EQ(ListenAddress::Parse("[::1]:80")->ToString(), "[::1]:80");
  EXPECT_TRUE(ListenAddress::Parse("localhost:1")->is_loopback());
  EXPECT_TRUE(ListenAddress::Parse("127.9.9.9:1")->is_loopback());
  EXPECT_FALSE(ListenAddress::Parse("0.0.0.0:1")->is_loopback());
  for (const char* bad : {"", ":", ":80", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80"}) {
    EXPECT_FALSE(ListenAddress::Parse(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace nqkv
