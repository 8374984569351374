#include "tests/bench/codec_suite.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/codec.h"
#include "kernels/float_format.h"
#include "tests/bench/memory_passes.h"
#include "tests/bench/sampler.h"

namespace nqkv::bench {

namespace {

constexpr PlaneShape kPlane = {.tokens = 64, .heads = 8, .channels = 128, .dtype = Dtype::kFloat16};
constexpr size_t kPlaneBytes = size_t{64} * 8 * 128 * 2;
constexpr ptrdiff_t kHeadStride = 128 * 2, kTokenStride = 8 * kHeadStride;

struct Free {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
using Buffer = std::unique_ptr<std::byte[], Free>;

Buffer MakeBuffer(size_t bytes) {
  constexpr size_t kAlignment = size_t{2} << 20;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Buffer buffer(static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)));
  std::memset(buffer.get(), 1, rounded);  // Pages exist before the clock starts.
  return buffer;
}

// Normal values, from a pool that is large enough for no two rows to be alike.
Buffer MakeSource(size_t planes, Dtype dtype) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.8f);
  std::vector<uint16_t> pool(1 << 16);
  for (uint16_t& value : pool) {
    value = dtype == Dtype::kFloat16 ? FloatToFloat16(normal(random)) : FloatToBfloat16(normal(random));
  }
  Buffer source = MakeBuffer(planes * kPlaneBytes);
  for (uint64_t i = 0; i < planes * kPlaneBytes / 2; ++i) {
    std::memcpy(source.get() + 2 * i, &pool[(i * 2654435761u >> 7) & 0xffff], 2);
  }
  return source;
}

// Planes of one dtype, encoded with one codec.
class Case {
 public:
  Case(size_t planes, Dtype dtype, const PlaneCodec& codec, const std::byte* source, std::byte* target)
      : planes_(planes), shape_(kPlane), codec_(codec), source_(source), target_(target) {
    shape_.dtype = dtype;
    encoded_bytes_ = EncodedBytes(codec, shape_);
    encoded_ = MakeBuffer(planes * encoded_bytes_);
    crcs_.resize(planes);
    Encode(true);
  }

  void Encode(bool measure) {
    for (size_t i = 0; i < planes_; ++i) {
      const EncodeResult result = EncodePlane({.source = source_ + i * kPlaneBytes,
                                               .token_stride = kTokenStride,
                                               .head_stride = kHeadStride,
                                               .shape = shape_,
                                               .codec = codec_,
                                               .encoded = {encoded_.get() + i * encoded_bytes_, encoded_bytes_},
                                               .measure = measure});
      if (!result.finite || !result.in_scale_range) std::abort();
      if (measure) crcs_[i] = result.crc32c;
    }
  }

  void Decode(bool check) {
    for (size_t i = 0; i < planes_; ++i) {
      const std::span<const std::byte> encoded(encoded_.get() + i * encoded_bytes_, encoded_bytes_);
      if (check && Crc32c(encoded) != crcs_[i]) std::abort();
      DecodePlane({.encoded = encoded,
                   .shape = shape_,
                   .codec = codec_,
                   .head_begin = 0,
                   .head_end = shape_.heads,
                   .dtype = shape_.dtype,
                   .target = target_ + i * kPlaneBytes,
                   .token_stride = kTokenStride,
                   .head_stride = kHeadStride,
                   .streaming = planes_ > 1});
    }
  }

 private:
  size_t planes_;
  PlaneShape shape_;
  PlaneCodec codec_;
  const std::byte* source_;
  std::byte* target_;
  size_t encoded_bytes_;
  Buffer encoded_;
  std::vector<uint32_t> crcs_;
};

constexpr size_t kBaselines = 4;

std::vector<Job> Baselines(const std::byte* source, std::byte* target, size_t bytes) {
  std::vector<Job> jobs = {{"memcpy", bytes, [=] { std::memcpy(target, source, bytes); }}};
  if (!HasMemoryPasses()) return jobs;
  jobs.push_back({"nt-copy", bytes, [=] { NtCopy(target, source, bytes); }});
  jobs.push_back({"nt-fill", bytes, [=] { NtFill(target, bytes); }});
  jobs.push_back({"read-pass", bytes, [=] {
                    volatile unsigned sink = ReadPass(source, bytes);
                    static_cast<void>(sink);
                  }});
  return jobs;
}

struct Form {
  const char* name;
  Dtype dtype;
  PlaneCodec codec;
};

constexpr PlaneCodec kRaw = {.id = CodecId::kRaw};
constexpr PlaneCodec kG64 = {.id = CodecId::kNqkv4, .scale_group = 64};
constexpr PlaneCodec kG128 = {.id = CodecId::kNqkv4, .scale_group = 128};
constexpr PlaneCodec kRotated = {.id = CodecId::kNqkv4h, .scale_group = 64};
constexpr PlaneCodec kRotatedK8 = {.id = CodecId::kNqkv4h, .scale_group = 64, .strong_channels = 8};
constexpr PlaneCodec kQ8Channel = {.id = CodecId::kQ8, .scale_group = 0};
constexpr PlaneCodec kQ8Token = {.id = CodecId::kQ8, .scale_group = 128};
constexpr Form kForms[] = {{"raw", Dtype::kFloat16, kRaw},
                           {"nqkv4-g64", Dtype::kFloat16, kG64},
                           {"nqkv4-g128", Dtype::kFloat16, kG128},
                           {"nqkv4-g64-bf16", Dtype::kBfloat16, kG64},
                           {"nqkv4-g128-bf16", Dtype::kBfloat16, kG128},
                           {"nqkv4h", Dtype::kFloat16, kRotated},
                           {"nqkv4h-k8", Dtype::kFloat16, kRotatedK8},
                           {"q8-channel", Dtype::kFloat16, kQ8Channel},
                           {"q8-token", Dtype::kFloat16, kQ8Token}};

// Rows of one size: every case against every baseline.
std::vector<Row> RunSize(const std::string& size, size_t planes, const std::string& filter, size_t repeats) {
  const size_t bytes = planes * kPlaneBytes;
  const Buffer half_source = MakeSource(planes, Dtype::kFloat16), brain_source = MakeSource(planes, Dtype::kBfloat16);
  const Buffer target = MakeBuffer(bytes);
  std::vector<Job> jobs = Baselines(half_source.get(), target.get(), bytes);
  const size_t baselines = jobs.size();
  std::vector<std::unique_ptr<Case>> cases;
  for (const Form& form : kForms) {
    const Buffer& source = form.dtype == Dtype::kFloat16 ? half_source : brain_source;
    const auto name = [&](const char* operation) { return absl::StrCat(operation, "/", form.name, "/", size); };
    const std::pair<const char*, std::function<void(Case&)>> operations[] = {
        {"encode", [](Case& c) { c.Encode(true); }},
        {"encode-plain", [](Case& c) { c.Encode(false); }},
        {"decode", [](Case& c) { c.Decode(true); }},
        {"decode-plain", [](Case& c) { c.Decode(false); }}};
    Case* loaded = nullptr;
    for (const auto& [operation, run] : operations) {
      if (!absl::StrContains(name(operation), filter)) continue;
      if (loaded == nullptr) {
        cases.push_back(std::make_unique<Case>(planes, form.dtype, form.codec, source.get(), target.get()));
        loaded = cases.back().get();
      }
      jobs.push_back({name(operation), bytes, [loaded, run = run] { run(*loaded); }});
    }
  }
  if (jobs.size() == baselines) return {};

  const std::vector<Sample> samples = TakeSamples(jobs, repeats);
  static constexpr const char* kNames[kBaselines] = {"memcpy", "nt-copy", "nt-fill", "read-pass"};
  std::vector<Row> rows;
  for (size_t j = baselines; j < jobs.size(); ++j) {
    // Encoding must read the raw bytes and decoding must write them.
    const size_t bound = absl::StartsWith(jobs[j].name, "encode") ? 3 : 2;
    for (size_t b = 0; b < kBaselines; ++b) {
      const auto rate = [&](size_t i) { return i < baselines ? std::optional(samples[i].gb_per_s) : std::nullopt; };
      rows.push_back({.suite = "codec",
                      .name = jobs[j].name,
                      .value = samples[j].gb_per_s,
                      .unit = "GB/s",
                      .baseline = kNames[b],
                      .baseline_value = rate(b),
                      .reason = b < baselines ? "" : "the processor has no AVX2",
                      .bound = kNames[bound],
                      .bound_value = rate(bound),
                      .repeats = repeats,
                      .spread_pct = samples[j].spread_pct});
    }
  }
  return rows;
}

}  // namespace

std::vector<Row> RunCodecSuite(const std::string& filter, size_t repeats) {
  std::vector<Row> rows = RunSize("64MiB", 512, filter, repeats);
  const std::vector<Row> cached = RunSize("128KiB", 1, filter, repeats);
  rows.insert(rows.end(), cached.begin(), cached.end());
  return rows;
}

}  // namespace nqkv::bench
