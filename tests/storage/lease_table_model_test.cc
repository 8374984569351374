// Random operations against a plain model that knows the rules of leases and nothing of how the table keeps them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "tests/storage/lease_fixture.h"

namespace nqkv {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr int kSteps = 20'000;
constexpr int kBlocks = 12;
constexpr uint64_t kBlocksPinnedMax = 9;
constexpr LeaseLimits kLimits = {.sessions_max = 4,
                                 .leases_max = 12,
                                 .parts_max = 40,
                                 .tenant_bytes_max = kBlocksPinnedMax * LeaseFixture::kBlockBytes};

struct ModelSession {
  LeaseTable::Speaker speaker;  // Its latest.
  nanoseconds heard = {};
};

struct ModelLease {
  std::string session;  // Empty: none.
  std::string request;
  std::vector<std::string> tokens;  // The last one is its own; those before were replaced.
  nanoseconds duration = {};
  nanoseconds deadline = {};
  std::vector<int> copies;  // Of blocks: each Put makes a new one.
};

struct ModelRead {
  LeaseTable::Hold hold;
  std::vector<int> copies;
  std::string token;  // Of the lease when the read began.
};

class LeaseModel {
 public:
  explicit LeaseModel(uint32_t seed) : random_(seed), fixture_(kLimits) {
    for (int block = 0; block < kBlocks; ++block) PutAnew(block);
  }

  void Step() {
    switch (random_() % 12) {
      case 0:
        return OpenSession();
      case 1:
        return ResumeSession();
      case 2:
        return HearSession();
      case 3:
        return CloseSession();
      case 4:
      case 5:
        return Turn();
      case 6:
        return BeginRead();
      case 7:
        return EndRead();
      case 8:
        return Release();
      case 9:
        return PutAnew(Draw(kBlocks));
      default:
        return Grant();
    }
  }

  // What the table says of itself is what the model and the store know.
  void Check() {
    fixture_.SweepAll();
    const LeaseStats stats = fixture_.table().Stats();
    ASSERT_EQ(stats.sessions, sessions_.size());
    ASSERT_EQ(stats.leases, leases_.size());
    ASSERT_EQ(stats.reads, reads_.size());
    ASSERT_EQ(fixture_.table().ListSessions().size(), sessions_.size());
    ASSERT_EQ(fixture_.table().ListLeases(0, 1'000).size(), leases_.size());
    const std::set<int> pinned = Pinned();
    ASSERT_EQ(stats.bytes, pinned.size() * LeaseFixture::kBlockBytes);
    ASSERT_EQ(fixture_.store().Stats().pinned_parts, pinned.size());
    const absl::Status status = fixture_.table().CheckConsistency();
    ASSERT_TRUE(status.ok()) << status;
  }

  void EndEverything() {
    while (!reads_.empty()) EndRead();
    fixture_.clock().Turn(std::chrono::hours(1));
    Expire();
    ASSERT_TRUE(leases_.empty() && sessions_.empty());
    Check();
    ASSERT_TRUE(fixture_.store().CheckConsistency().ok());
  }

  uint64_t refused() const { return refused_; }

 private:
  int Draw(int below) { return static_cast<int>(random_() % static_cast<uint32_t>(below)); }
  LeaseTable& table() { return fixture_.table(); }
  nanoseconds Now() const { return fixture_.clock_now(); }

  void PutAnew(int block) {
    fixture_.store().Delete(LeaseFixture::KeyOf(block));
    ASSERT_TRUE(fixture_.Put(block));
    copies_[block] = ++last_copy_;
  }

  void OpenSession() {
    const auto speaker = table().OpenSession(0, "");
    ASSERT_EQ(speaker.ok(), sessions_.size() < kLimits.sessions_max);
    if (speaker.ok()) sessions_[speaker->session_id] = {.speaker = *speaker, .heard = Now()};
    if (speaker.ok()) speakers_.push_back(*speaker);
  }
  // A speaker of any session that ever was.
  std::optional<LeaseTable::Speaker> DrawSpeaker() {
    if (speakers_.empty()) return std::nullopt;
    return speakers_[speakers_.size() - 1 - static_cast<size_t>(Draw(std::min<int>(12, int(speakers_.size()))))];
  }
  void ResumeSession() {
    const auto drawn = DrawSpeaker();
    if (!drawn.has_value()) return;
    const auto resumed = table().ResumeSession(0, drawn->session_id);
    const auto session = sessions_.find(drawn->session_id);
    ASSERT_EQ(resumed.ok(), session != sessions_.end());
    if (!resumed.ok()) return;
    session->second = {.speaker = *resumed, .heard = Now()};
    speakers_.push_back(*resumed);
  }
  bool Speaks(const LeaseTable::Speaker& speaker) {
    const auto session = sessions_.find(speaker.session_id);
    return session != sessions_.end() && session->second.speaker.turn == speaker.turn;
  }
  void HearSession() {
    const auto drawn = DrawSpeaker();
    if (!drawn.has_value()) return;
    ASSERT_EQ(table().Hear(*drawn).ok(), Speaks(*drawn));
    if (Speaks(*drawn)) sessions_[drawn->session_id].heard = Now();
  }
  void CloseSession() {
    const auto drawn = DrawSpeaker();
    if (!drawn.has_value() || Draw(3) != 0) return;
    table().CloseSession(*drawn);
    if (Speaks(*drawn)) EndSession(drawn->session_id);
  }
  void EndSession(const std::string& id) {
    sessions_.erase(id);
    std::erase_if(leases_, [&id](const ModelLease& lease) { return lease.session == id; });
  }

  void Turn() {
    fixture_.clock().Turn(nanoseconds(random_() % 4'000'000'000u));
    Expire();
  }
  void Expire() {
    std::vector<std::string> lapsed;
    for (const auto& [id, session] : sessions_) {
      if (session.heard + kLimits.session_grace <= Now()) lapsed.push_back(id);
    }
    for (const std::string& id : lapsed) EndSession(id);
    std::erase_if(leases_, [&](const ModelLease& lease) { return !IsRead(lease) && lease.deadline <= Now(); });
  }
  bool IsRead(const ModelLease& lease) const {
    return std::any_of(reads_.begin(), reads_.end(),
                       [&lease](const ModelRead& read) { return read.token == lease.tokens.back(); });
  }

  std::set<int> Pinned() const {
    std::set<int> pinned;
    for (const ModelLease& lease : leases_) pinned.insert(lease.copies.begin(), lease.copies.end());
    for (const ModelRead& read : reads_) pinned.insert(read.copies.begin(), read.copies.end());
    return pinned;
  }
  // Pins of leases, and of ended ones as long as they are read under.
  uint64_t PinCount() const {
    std::map<std::string, uint64_t> pins;
    for (const ModelLease& lease : leases_) pins[lease.tokens.back()] = lease.copies.size();
    for (const ModelRead& read : reads_) pins[read.token] = read.copies.size();
    uint64_t sum = 0;
    for (const auto& [token, count] : pins) sum += count;
    return sum;
  }

  void Grant() {
    ModelLease lease;
    if (Draw(2) == 0) {
      const auto drawn = DrawSpeaker();
      if (drawn.has_value()) lease.session = drawn->session_id;
    }
    if (Draw(3) != 0) lease.request = absl::StrCat("request-", Draw(4));
    lease.duration = seconds(1 + Draw(10));
    std::set<int> blocks;
    for (int i = Draw(6); i > 0; --i) blocks.insert(Draw(kBlocks));
    for (const int block : blocks) lease.copies.push_back(copies_[block]);
    const auto token =
        table().Grant({.session_id = lease.session, .request_id = lease.request, .duration = lease.duration},
                      fixture_.Pin({blocks.begin(), blocks.end()}));
    if (!lease.session.empty() && !sessions_.contains(lease.session)) {
      ASSERT_EQ(token.status().code(), absl::StatusCode::kAborted);
      return;
    }
    const std::vector<ModelLease> before = leases_;
    std::optional<ModelLease> replaced;
    std::erase_if(leases_, [&](const ModelLease& other) {
      const bool same = !lease.request.empty() && other.request == lease.request && other.session == lease.session;
      if (same) replaced = other;
      return same;
    });
    if (lease.copies.empty()) {
      ASSERT_TRUE(token.ok());
      ASSERT_EQ(*token, "");
      return;
    }
    if (replaced.has_value()) lease.tokens = replaced->tokens;
    lease.tokens.push_back(token.ok() ? *token : "refused");
    lease.deadline = Now() + lease.duration;
    leases_.push_back(lease);
    const bool fits =
        leases_.size() <= kLimits.leases_max && PinCount() <= kLimits.parts_max && Pinned().size() <= kBlocksPinnedMax;
    ASSERT_EQ(token.ok(), fits) << token.status();
    if (fits) {
      for (const std::string& given : lease.tokens) tokens_.push_back(given);
    } else {
      ASSERT_EQ(token.status().code(), absl::StatusCode::kResourceExhausted);
      leases_ = before;
      ++refused_;
    }
  }

  std::string DrawToken() {
    if (tokens_.empty()) return "none";
    return tokens_[tokens_.size() - 1 - static_cast<size_t>(Draw(std::min<int>(30, int(tokens_.size()))))];
  }
  void BeginRead() {
    const std::string token = DrawToken();
    auto hold = table().BeginRead(0, token);
    const auto lease = std::find_if(leases_.begin(), leases_.end(), [&token](const ModelLease& each) {
      return std::find(each.tokens.begin(), each.tokens.end(), token) != each.tokens.end();
    });
    ASSERT_EQ(hold.ok(), lease != leases_.end());
    if (!hold.ok()) return;
    reads_.push_back({.hold = *std::move(hold), .copies = lease->copies, .token = lease->tokens.back()});
  }
  void EndRead() {
    if (reads_.empty()) return;
    const size_t index = static_cast<size_t>(Draw(int(reads_.size())));
    const std::string token = reads_[index].token;
    reads_.erase(reads_.begin() + static_cast<ptrdiff_t>(index));
    for (ModelLease& lease : leases_) {
      if (lease.tokens.back() == token && !IsRead(lease)) {
        lease.deadline = std::max(lease.deadline, Now() + lease.duration);
      }
    }
  }
  void Release() {
    const std::string token = DrawToken();
    const bool released = table().Release(0, token);
    const size_t count =
        std::erase_if(leases_, [&token](const ModelLease& lease) { return lease.tokens.back() == token; });
    ASSERT_EQ(released, count == 1);
  }

  std::mt19937 random_;
  LeaseFixture fixture_;
  int last_copy_ = 0;
  std::map<int, int> copies_;  // Of each block, the one that is found.
  std::map<std::string, ModelSession> sessions_;
  std::vector<LeaseTable::Speaker> speakers_;  // All that ever spoke.
  std::vector<ModelLease> leases_;
  std::vector<std::string> tokens_;  // All that were ever given.
  std::vector<ModelRead> reads_;
  uint64_t refused_ = 0;
};

class LeaseTableModelTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(LeaseTableModelTest, DoesWhatTheModelDoes) {
  LeaseModel model(GetParam());
  for (int step = 0; step < kSteps && !HasFatalFailure(); ++step) {
    model.Step();
    model.Check();
  }
  if (!HasFatalFailure()) model.EndEverything();
  EXPECT_GT(model.refused(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, LeaseTableModelTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace nqkv
