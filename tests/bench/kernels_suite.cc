#include "tests/bench/kernels_suite.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/codec.h"
#include "kernels/device_codec.h"
#include "kernels/device_memory.h"
#include "kernels/float_format.h"
#include "kernels/status_macros.h"
#include "kernels/stream.h"
#include "tests/bench/sampler.h"

namespace nqkv::bench {
namespace {

constexpr PlaneShape kShape = {.tokens = 64, .heads = 8, .channels = 128, .dtype = Dtype::kFloat16};
constexpr size_t kRawBytes = size_t{1} << 30;
constexpr uint32_t kPageTokens = 16;
constexpr size_t kLaunches = 10;  // A sample: one launch is too short to be timed.

constexpr PlaneCodec kCodecs[] = {{.id = CodecId::kNqkv4, .scale_group = 64},
                                  {.id = CodecId::kNqkv4, .scale_group = 128},
                                  {.id = CodecId::kNqkv4h, .scale_group = 64, .strong_channels = 4},
                                  {.id = CodecId::kQ8},
                                  {.id = CodecId::kQ8, .scale_group = 128}};

size_t PlaneCount() { return kRawBytes / kShape.raw_bytes(); }

struct Case {
  std::string name;
  bool encode = false;
  bool paged = false;
  PlaneCodec codec;
};

std::vector<Case> Cases(const std::string& filter) {
  std::vector<Case> cases;
  for (const PlaneCodec& codec : kCodecs) {
    const std::string form = absl::StrCat("/", std::string(PlaneCodecName(codec)), "/1GiB");
    cases.push_back({absl::StrCat("encode", form), true, false, codec});
    cases.push_back({absl::StrCat("encode-paged", form), true, true, codec});
    cases.push_back({absl::StrCat("decode", form), false, false, codec});
    cases.push_back({absl::StrCat("decode-paged", form), false, true, codec});
  }
  std::erase_if(cases, [&](const Case& one) { return one.name.find(filter) == std::string::npos; });
  return cases;
}

// What all cases work on.
class Workload {
 public:
  static absl::StatusOr<Workload> Create() {
    NQKV_RETURN_IF_ERROR(FindDevice().status());
    NQKV_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
    NQKV_ASSIGN_OR_RETURN(DeviceMemory raw, DeviceMemory::Allocate(kRawBytes));
    NQKV_ASSIGN_OR_RETURN(DeviceMemory copy, DeviceMemory::Allocate(kRawBytes));
    NQKV_ASSIGN_OR_RETURN(DeviceMemory encoded, DeviceMemory::Allocate(PlaneCount() * EncodedStride()));
    NQKV_ASSIGN_OR_RETURN(DeviceMemory sums,
                          DeviceMemory::Allocate(PlaneCount() * kShape.heads * sizeof(DeviceHeadSums)));
    NQKV_ASSIGN_OR_RETURN(DeviceMemory tables, DeviceMemory::Allocate(TableBytes()));
    NQKV_ASSIGN_OR_RETURN(PinnedMemory pinned,
                          PinnedMemory::Allocate(std::max<size_t>(TableBytes(), kShape.raw_bytes())));
    Workload workload(std::move(stream), std::move(raw), std::move(copy), std::move(encoded), std::move(sums),
                      std::move(tables), std::move(pinned));
    NQKV_RETURN_IF_ERROR(workload.FillRaw());
    NQKV_RETURN_IF_ERROR(workload.FillTables());
    return workload;
  }

  absl::Status Copy() { return CopyOnDevice(copy_.data(), raw_.data(), kRawBytes, stream_.view()); }
  absl::Status Run(const Case& one) {
    const DevicePlaneLayout layout = {.page_stride = kPageTokens * kTokenBytes,
                                      .token_stride = kTokenBytes,
                                      .head_stride = kTokenBytes / kShape.heads,
                                      .page_tokens = one.paged ? kPageTokens : kShape.tokens};
    const std::byte* tables = tables_.data() + (one.paged ? JobsBytes() : 0);
    const auto count = static_cast<uint32_t>(PlaneCount());
    if (one.encode) {
      return EncodeOnDevice({.jobs = reinterpret_cast<const DeviceEncodeJob*>(tables),
                             .job_count = count,
                             .shape = kShape,
                             .codec = one.codec,
                             .layout = layout},
                            stream_.view());
    }
    return DecodeOnDevice(
        {.jobs = reinterpret_cast<const DeviceDecodeJob*>(tables + PlaneCount() * sizeof(DeviceEncodeJob)),
         .job_count = count,
         .shape = kShape,
         .codec = one.codec,
         .head_begin = 0,
         .head_end = kShape.heads,
         .dtype = kShape.dtype,
         .layout = layout},
        stream_.view());
  }
  absl::Status Wait() const { return stream_.Wait(); }

 private:
  static constexpr int64_t kTokenBytes = kShape.heads * kShape.channels * 2;
  static constexpr size_t kPlanePages = kShape.tokens / kPageTokens;

  Workload(Stream stream, DeviceMemory raw, DeviceMemory copy, DeviceMemory encoded, DeviceMemory sums,
           DeviceMemory tables, PinnedMemory pinned)
      : stream_(std::move(stream)),
        raw_(std::move(raw)),
        copy_(std::move(copy)),
        encoded_(std::move(encoded)),
        sums_(std::move(sums)),
        tables_(std::move(tables)),
        pinned_(std::move(pinned)) {}

  static size_t EncodedStride() {
    uint64_t bytes = 0;
    for (const PlaneCodec& codec : kCodecs) bytes = std::max(bytes, EncodedBytes(codec, kShape));
    return (bytes + 15) / 16 * 16;
  }
  // Encode and decode jobs; once without page tables, once with them.
  static size_t JobsBytes() { return PlaneCount() * (sizeof(DeviceEncodeJob) + sizeof(DeviceDecodeJob)); }
  static size_t TableBytes() { return 2 * JobsBytes() + PlaneCount() * kPlanePages * sizeof(int32_t); }

  absl::Status FillRaw() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.8f);
    for (size_t i = 0; i < kShape.elements(); ++i) {
      const uint16_t bits = FloatToFloat16(normal(random));
      std::memcpy(pinned_.data() + 2 * i, &bits, sizeof(bits));
    }
    for (size_t i = 0; i < PlaneCount(); ++i) {
      NQKV_RETURN_IF_ERROR(
          CopyToDevice(raw_.data() + i * kShape.raw_bytes(), pinned_.data(), kShape.raw_bytes(), stream_.view()));
    }
    return stream_.Wait();
  }

  absl::Status FillTables() {
    std::byte* next = pinned_.data();
    const auto put = [&next](const auto& value) {
      std::memcpy(next, &value, sizeof(value));
      next += sizeof(value);
    };
    const auto* pages = reinterpret_cast<const int32_t*>(tables_.data() + 2 * JobsBytes());
    auto* sums = reinterpret_cast<DeviceHeadSums*>(sums_.data());
    for (bool paged : {false, true}) {
      for (size_t i = 0; i < PlaneCount(); ++i) {
        put(DeviceEncodeJob{.source = raw_.data() + (paged ? 0 : i * kShape.raw_bytes()),
                            .pages = paged ? pages + i * kPlanePages : nullptr,
                            .encoded = encoded_.data() + i * EncodedStride(),
                            .sums = sums + i * kShape.heads});
      }
      for (size_t i = 0; i < PlaneCount(); ++i) {
        put(DeviceDecodeJob{.encoded = encoded_.data() + i * EncodedStride(),
                            .target = copy_.data() + (paged ? 0 : i * kShape.raw_bytes()),
                            .pages = paged ? pages + i * kPlanePages : nullptr});
      }
    }
    std::vector<int32_t> order(PlaneCount() * kPlanePages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(2));
    std::memcpy(next, order.data(), order.size() * sizeof(int32_t));
    NQKV_RETURN_IF_ERROR(CopyToDevice(tables_.data(), pinned_.data(), TableBytes(), stream_.view()));
    return stream_.Wait();
  }

  Stream stream_;
  DeviceMemory raw_;
  DeviceMemory copy_;  // Of the copy, and of decoding.
  DeviceMemory encoded_;
  DeviceMemory sums_;
  DeviceMemory tables_;
  PinnedMemory pinned_;
};

// GB/s of kLaunches runs, `bytes` each.
template <typename Launch>
absl::StatusOr<double> Time(const Workload& workload, double bytes, Launch launch) {
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < kLaunches; ++i) NQKV_RETURN_IF_ERROR(launch());
  NQKV_RETURN_IF_ERROR(workload.Wait());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return bytes * kLaunches / seconds.count() / 1e9;
}

struct Measured {
  Sample sample;
  Sample copy;
};

// The case and the copy take turns.
absl::StatusOr<Measured> Measure(Workload& workload, const Case& one, size_t repeats) {
  const double moved = static_cast<double>(kRawBytes + PlaneCount() * EncodedBytes(one.codec, kShape));
  std::vector<double> rates, copies;
  // Decoding reads what encoding wrote; the first round also warms up.
  NQKV_RETURN_IF_ERROR(workload.Run({.name = "", .encode = true, .paged = one.paged, .codec = one.codec}));
  for (size_t i = 0; i <= repeats; ++i) {
    NQKV_ASSIGN_OR_RETURN(const double copy, Time(workload, 2.0 * kRawBytes, [&] { return workload.Copy(); }));
    NQKV_ASSIGN_OR_RETURN(const double rate, Time(workload, moved, [&] { return workload.Run(one); }));
    if (i == 0) continue;
    copies.push_back(copy);
    rates.push_back(rate);
  }
  return Measured{Summarize(std::move(rates)), Summarize(std::move(copies))};
}

Row RowOf(const Case& one, const absl::StatusOr<Measured>& measured, size_t repeats) {
  Row row;
  row.suite = "kernels";
  row.name = one.name;
  row.unit = "GB/s";
  row.baseline = row.bound = "d2d-copy";
  if (!measured.ok()) {
    row.reason = std::string(measured.status().message());
    return row;
  }
  row.value = measured->sample.gb_per_s;
  row.spread_pct = measured->sample.spread_pct;
  row.repeats = repeats;
  row.baseline_value = row.bound_value = measured->copy.gb_per_s;
  return row;
}

}  // namespace

std::vector<Row> RunKernelsSuite(const std::string& filter, size_t repeats) {
  std::vector<Row> rows;
  absl::StatusOr<Workload> workload = Workload::Create();
  for (const Case& one : Cases(filter)) {
    rows.push_back(workload.ok() ? RowOf(one, Measure(*workload, one, repeats), repeats)
                                 : RowOf(one, workload.status(), repeats));
  }
  return rows;
}

}  // namespace nqkv::bench
