#include "storage/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nqkv {
namespace {

void ExpectRefused(const StorageOptions& options, absl::string_view named) {
  const absl::Status status = options.Validate();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(std::string(named)));
}

TEST(OptionsTest, DefaultsAreValid) { EXPECT_EQ(StorageOptions().Validate(), absl::OkStatus()); }

TEST(OptionsTest, NamesTheOptionThatIsWrong) {
  ExpectRefused({.host_bytes = StorageOptions::kHostBytesMin - 1}, "host_bytes");
  ExpectRefused({.bytes_per_slot = 512}, "bytes_per_slot");
  ExpectRefused({.bytes_per_slot = 3000}, "bytes_per_slot");
  ExpectRefused({.bytes_per_slot = 2 << 20}, "bytes_per_slot");
  ExpectRefused({.index_stripes = 0}, "index_stripes");
  ExpectRefused({.index_stripes = 3}, "index_stripes");
  ExpectRefused({.index_stripes = 2048}, "index_stripes");
  ExpectRefused({.eviction_policy = "fifo"}, "eviction_policy");
}

}  // namespace
}  // namespace nqkv
