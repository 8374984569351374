#include "storage/lease_table.h"

#include <gmock/gmock.h>

#include <numeric>

#include "tests/storage/lease_fixture.h"

namespace nqkv {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

class LeaseTableTest : public ::testing::Test {
 protected:
  void Open(const LeaseLimits& limits = {}, int blocks = 10) {
    fixture_ = std::make_unique<LeaseFixture>(limits);
    for (int block = 0; block < blocks; ++block) ASSERT_TRUE(fixture_->Put(block));
  }
  LeaseTable& table() { return fixture_->table(); }
  void Turn(std::chrono::nanoseconds by) {
    fixture_->clock().Turn(by);
    fixture_->SweepAll();
  }
  LeaseTable::Speaker Session() { return *table().OpenSession(0, "worker"); }
  absl::StatusOr<std::string> Grant(const std::vector<int>& blocks, const std::string& request = "",
                                    const std::string& session = "") {
    return table().Grant({.session_id = session, .request_id = request, .duration = seconds(30)},
                         fixture_->Pin(blocks));
  }
  bool CanRead(const std::string& token, TenantId tenant = 0) { return table().BeginRead(tenant, token).ok(); }
  uint64_t Pinned() { return fixture_->store().Stats().pinned_parts; }
  uint64_t Ended(LeaseEnd end) { return table().Stats().ended_total[static_cast<size_t>(end)]; }
  void TearDown() override {
    if (fixture_ == nullptr) return;
    EXPECT_TRUE(table().CheckConsistency().ok()) << table().CheckConsistency();
    EXPECT_TRUE(fixture_->store().CheckConsistency().ok());
  }

  std::unique_ptr<LeaseFixture> fixture_;
};

TEST_F(LeaseTableTest, ALeasePinsItsBlocksUntilItIsReleased) {
  Open();
  const std::string token = *Grant({1, 2, 3});
  EXPECT_EQ(Pinned(), 3u);
  EXPECT_EQ(table().Stats().leases, 1u);
  EXPECT_EQ(table().Stats().bytes, 3 * LeaseFixture::kBlockBytes);
  EXPECT_TRUE(CanRead(token));
  EXPECT_TRUE(table().Release(0, token));
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(table().Stats().bytes, 0u);
  EXPECT_FALSE(CanRead(token));
  EXPECT_FALSE(table().Release(0, token));
  EXPECT_EQ(Ended(LeaseEnd::kReleased), 1u);
}

TEST_F(LeaseTableTest, LeasedBlocksAreNotEvicted) {
  Open();
  const std::string token = *Grant({0, 1, 2});
  for (int block = 100; block < 5'000; ++block) ASSERT_TRUE(fixture_->Put(block));
  EXPECT_EQ(fixture_->Pin({0, 1, 2, 3, 4}).size(), 3u);
  EXPECT_TRUE(table().Release(0, token));
}

TEST_F(LeaseTableTest, ALeaseEndsAtItsDeadline) {
  Open();
  const std::string token = *Grant({1});
  Turn(seconds(30) - milliseconds(1));
  EXPECT_EQ(Pinned(), 1u);
  Turn(milliseconds(1));
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_FALSE(CanRead(token));
  EXPECT_EQ(Ended(LeaseEnd::kExpired), 1u);
}

TEST_F(LeaseTableTest, NobodyReadsUnderALeasePastItsDeadlineThoughNoSweepCameYet) {
  Open();
  const std::string token = *Grant({1});
  fixture_->clock().Turn(seconds(30));
  EXPECT_FALSE(CanRead(token));
  EXPECT_FALSE(table().Release(0, token));
}

TEST_F(LeaseTableTest, ALeaseDoesNotLapseUnderAReadAndLastsItsDurationFromTheReadsEnd) {
  Open();
  const std::string token = *Grant({1});
  auto first = table().BeginRead(0, token);
  auto second = table().BeginRead(0, token);
  ASSERT_TRUE(first.ok() && second.ok());
  Turn(seconds(100));
  first->Reset();
  Turn(seconds(100));
  EXPECT_EQ(Pinned(), 1u);
  EXPECT_EQ(table().Stats().reads, 1u);
  second->Reset();
  Turn(seconds(29));
  EXPECT_TRUE(CanRead(token));  // Which gives it its duration anew.
  Turn(seconds(29));
  EXPECT_EQ(Pinned(), 1u);
  Turn(seconds(1));
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, AReadKeepsThePinsOfALeaseThatIsReleasedUnderIt) {
  Open();
  const std::string token = *Grant({1, 2});
  auto read = table().BeginRead(0, token);
  EXPECT_TRUE(table().Release(0, token));
  EXPECT_EQ(table().Stats().leases, 0u);
  EXPECT_FALSE(CanRead(token));
  EXPECT_EQ(Pinned(), 2u);
  EXPECT_EQ(table().Stats().parts, 2u);
  read->Reset();
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, ARepeatOfARequestReplacesItsLease) {
  Open();
  const LeaseTable::Speaker session = Session();
  const std::string first = *Grant({1, 2, 3}, "request", session.session_id);
  const std::string second = *Grant({3, 4}, "request", session.session_id);
  EXPECT_EQ(Pinned(), 2u);
  EXPECT_EQ(table().Stats().leases, 1u);
  EXPECT_EQ(Ended(LeaseEnd::kReplaced), 1u);
  // A worker that was told the first token reads under the second lease, and cannot end it.
  EXPECT_TRUE(CanRead(first));
  EXPECT_FALSE(table().Release(0, first));
  EXPECT_EQ(Pinned(), 2u);
  EXPECT_TRUE(table().Release(0, second));
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, TheSameRequestOfAnotherSessionOrTenantIsAnotherRequest) {
  Open();
  ASSERT_TRUE(fixture_->Put(1, 7));
  EXPECT_TRUE(Grant({1}, "request", Session().session_id).ok());
  EXPECT_TRUE(Grant({1}, "request", Session().session_id).ok());
  EXPECT_TRUE(Grant({1}, "request").ok());
  const auto other =
      table().Grant({.tenant = 7, .request_id = "request", .duration = seconds(1)}, fixture_->Pin({1}, 7));
  EXPECT_EQ(table().Stats().leases, 4u);
  EXPECT_FALSE(CanRead(*other));
  EXPECT_TRUE(CanRead(*other, 7));
  EXPECT_FALSE(table().Release(0, *other));
}

TEST_F(LeaseTableTest, RequestsWithoutANameReplaceNothing) {
  Open();
  EXPECT_TRUE(Grant({1}).ok());
  EXPECT_TRUE(Grant({1}).ok());
  EXPECT_EQ(table().Stats().leases, 2u);
  EXPECT_EQ(table().Stats().parts, 2u);
  EXPECT_EQ(table().Stats().bytes, LeaseFixture::kBlockBytes);
}

TEST_F(LeaseTableTest, NoBlocksMakeNoLeaseAndEndTheOneBefore) {
  Open();
  EXPECT_EQ(*Grant({}, "request"), "");
  EXPECT_TRUE(Grant({1}, "request").ok());
  EXPECT_EQ(*Grant({}, "request"), "");
  EXPECT_EQ(table().Stats().leases, 0u);
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, AReadKeepsThePinsOfALeaseThatIsReplacedUnderIt) {
  Open();
  const std::string token = *Grant({1, 2}, "request");
  auto read = table().BeginRead(0, token);
  ASSERT_TRUE(Grant({2, 3}, "request").ok());
  EXPECT_EQ(Pinned(), 3u);
  EXPECT_EQ(table().Stats().parts, 4u);
  EXPECT_EQ(table().Stats().bytes, 3 * LeaseFixture::kBlockBytes);
  read->Reset();
  EXPECT_EQ(Pinned(), 2u);
}

TEST_F(LeaseTableTest, TheEndOfASessionEndsItsLeases) {
  Open();
  const LeaseTable::Speaker session = Session();
  const std::string token = *Grant({1}, "request", session.session_id);
  ASSERT_TRUE(Grant({2}).ok());
  table().CloseSession(session);
  EXPECT_FALSE(CanRead(token));  // Before any sweep.
  EXPECT_EQ(Grant({1}, "request", session.session_id).status().code(), absl::StatusCode::kAborted);
  fixture_->SweepAll();
  EXPECT_EQ(Pinned(), 1u);
  EXPECT_EQ(Ended(LeaseEnd::kOrphaned), 1u);
  EXPECT_EQ(table().Stats().sessions_closed_total, 1u);
}

TEST_F(LeaseTableTest, ASessionThatIsNotHeardOfEndsAfterItsGrace) {
  Open();
  const LeaseTable::Speaker heard = Session();
  const LeaseTable::Speaker silent = Session();
  ASSERT_TRUE(Grant({1}, "", heard.session_id).ok());
  ASSERT_TRUE(Grant({2}, "", silent.session_id).ok());
  Turn(seconds(10));
  EXPECT_TRUE(table().Hear(heard).ok());
  Turn(seconds(5));
  EXPECT_EQ(table().Stats().sessions, 1u);
  EXPECT_EQ(table().Stats().sessions_lapsed_total, 1u);
  EXPECT_EQ(Pinned(), 1u);
  EXPECT_EQ(table().Hear(silent).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(table().Hear(heard).ok());
}

TEST_F(LeaseTableTest, AResumedSessionKeepsItsLeasesAndHasOneSpeaker) {
  Open();
  const LeaseTable::Speaker first = Session();
  ASSERT_TRUE(Grant({1}, "request", first.session_id).ok());
  Turn(seconds(14));
  const auto second = table().ResumeSession(0, first.session_id);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->session_id, first.session_id);
  EXPECT_EQ(table().Hear(first).code(), absl::StatusCode::kAborted);
  table().CloseSession(first);  // Comes late, and does nothing.
  Turn(seconds(14));
  EXPECT_TRUE(table().Hear(*second).ok());
  EXPECT_EQ(Pinned(), 1u);
  EXPECT_EQ(table().ResumeSession(7, first.session_id).status().code(), absl::StatusCode::kAborted);
}

TEST_F(LeaseTableTest, IdsAndTokensOfAnotherStartOrOfNobodyNameNothing) {
  Open();
  const LeaseTable::Speaker session = Session();
  const std::string token = *Grant({1}, "", session.session_id);
  LeaseFixture other;
  ASSERT_TRUE(other.Put(1));
  const auto other_session = other.table().OpenSession(0, "");
  EXPECT_FALSE(other.table().ResumeSession(0, session.session_id).ok());
  EXPECT_TRUE(other.table().Grant({.duration = seconds(1)}, other.Pin({1})).ok());
  EXPECT_FALSE(other.table().BeginRead(0, token).ok());
  for (const std::string& text : {std::string(), std::string("x"), token + "x", token.substr(1), std::string(20, 0)}) {
    EXPECT_FALSE(CanRead(text));
    EXPECT_FALSE(table().Release(0, text));
  }
  std::string future = token;
  future[16] = 2;
  EXPECT_FALSE(CanRead(future));
  for (const std::string& id : {std::string("-1"), std::string("1"), session.session_id + "0", std::string("-")}) {
    EXPECT_FALSE(table().ResumeSession(0, id).ok()) << id;
  }
}

TEST_F(LeaseTableTest, RefusesMoreThanItsLimitsByNameAndKeepsTheLeaseBefore) {
  Open({.sessions_max = 1, .leases_max = 3, .parts_max = 4, .tenant_bytes_max = 3 * LeaseFixture::kBlockBytes});
  const LeaseTable::Speaker session = Session();
  EXPECT_THAT(std::string(table().OpenSession(0, "").status().message()), HasSubstr("1 sessions"));
  const std::string kept = *Grant({1, 2}, "request");
  EXPECT_THAT(std::string(Grant({1, 2, 3}).status().message()), HasSubstr("4 parts"));
  EXPECT_THAT(std::string(Grant({3, 4}).status().message()), HasSubstr("12288 bytes"));
  EXPECT_THAT(std::string(Grant({1, 2, 3, 4}, "request").status().message()), HasSubstr("12288 bytes"));
  EXPECT_EQ(Pinned(), 2u);
  EXPECT_TRUE(CanRead(kept));
  // What the request gives back counts for it.
  EXPECT_TRUE(Grant({3, 4, 5}, "request").ok());
  EXPECT_TRUE(Grant({3}).ok());
  EXPECT_EQ(Grant({3}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Grant({3, 4}, "request").ok());
  EXPECT_TRUE(Grant({3}).ok());
  EXPECT_THAT(std::string(Grant({3}).status().message()), HasSubstr("3 leases"));
  EXPECT_EQ(table().Stats().refused_total, 5u);
}

TEST_F(LeaseTableTest, OneTenantsLeasesDoNotUseUpAnothers) {
  Open({.tenant_bytes_max = LeaseFixture::kBlockBytes});
  ASSERT_TRUE(fixture_->Put(1, 7));
  EXPECT_TRUE(Grant({1}).ok());
  EXPECT_FALSE(Grant({2}).ok());
  EXPECT_TRUE(table().Grant({.tenant = 7, .duration = seconds(1)}, fixture_->Pin({1}, 7)).ok());
}

TEST_F(LeaseTableTest, ADeletedBlockIsFreedWhenItsLeaseEnds) {
  Open();
  const uint64_t used_bytes = fixture_->store().Stats().used_bytes;
  const std::string token = *Grant({1});
  fixture_->store().Delete(LeaseFixture::KeyOf(1));
  EXPECT_EQ(fixture_->store().Stats().used_bytes, used_bytes);
  EXPECT_TRUE(table().Release(0, token));
  EXPECT_LT(fixture_->store().Stats().used_bytes, used_bytes);
}

TEST_F(LeaseTableTest, AClockThatJumpsAheadEndsWhatIsDueAndOneThatGoesBackExtendsNothing) {
  Open();
  const LeaseTable::Speaker session = Session();
  ASSERT_TRUE(Grant({1}, "", session.session_id).ok());
  const std::string reading = *Grant({2});
  auto read = table().BeginRead(0, reading);
  Turn(hours(24 * 365));
  EXPECT_EQ(table().Stats().sessions, 0u);
  EXPECT_EQ(Pinned(), 1u);  // The read's.
  Turn(-hours(24 * 365));
  ASSERT_TRUE(Grant({3}).ok());
  read->Reset();
  EXPECT_EQ(Pinned(), 2u);
  Turn(hours(24 * 365) + seconds(29));  // Back to where it was, and on.
  EXPECT_EQ(Pinned(), 2u);
  Turn(seconds(1));
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseTableTest, ASchedulerThatLooksUpTheSameRequestAHundredTimesHoldsOneLease) {
  Open();
  const LeaseTable::Speaker session = Session();
  std::vector<std::string> tokens;
  for (int i = 0; i < 100; ++i) {
    tokens.push_back(*Grant({0, 1, 2, 3, 4}, "request", session.session_id));
    Turn(seconds(1));
    ASSERT_TRUE(table().Hear(session).ok());
    ASSERT_EQ(table().Stats().leases, 1u);
    ASSERT_EQ(table().Stats().parts, 5u);
    ASSERT_EQ(Pinned(), 5u);
  }
  for (int i = 0; i < 99; ++i) EXPECT_FALSE(table().Release(0, tokens[static_cast<size_t>(i)]));
  EXPECT_TRUE(table().Release(0, tokens.back()));
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(table().Stats().granted_total, 100u);
}

TEST_F(LeaseTableTest, TenThousandLeasesOfOneSessionEndInSmallSteps) {
  Open();
  const LeaseTable::Speaker session = Session();
  for (int i = 0; i < 10'000; ++i) {
    ASSERT_TRUE(Grant({i % 10}, absl::StrCat("request-", i), session.session_id).ok());
  }
  EXPECT_EQ(table().Stats().parts, 10'000u);
  EXPECT_EQ(table().Stats().bytes, 10 * LeaseFixture::kBlockBytes);
  table().CloseSession(session);
  uint64_t left = table().Stats().leases;
  int steps = 0;
  for (bool more = true; more; ++steps) {
    more = table().Sweep();
    const uint64_t now_left = table().Stats().leases;
    ASSERT_LE(left - now_left, 64u);
    left = now_left;
    if (steps % 20 == 0) {
      ASSERT_TRUE(table().CheckConsistency().ok()) << table().CheckConsistency();
    }
  }
  EXPECT_EQ(steps, 157);
  EXPECT_EQ(left, 0u);
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(Ended(LeaseEnd::kOrphaned), 10'000u);
}

TEST_F(LeaseTableTest, LeasesOfAnEndedSessionThatAreDueAsWellEndOnce) {
  Open();
  const LeaseTable::Speaker session = Session();
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(Grant({i % 10}, "", session.session_id).ok());
  table().CloseSession(session);
  fixture_->clock().Turn(seconds(40));
  fixture_->SweepAll();
  EXPECT_EQ(table().Stats().leases, 0u);
  EXPECT_EQ(Ended(LeaseEnd::kOrphaned) + Ended(LeaseEnd::kExpired), 200u);
}

TEST_F(LeaseTableTest, ListsSessionsAndLeases) {
  Open();
  const LeaseTable::Speaker session = Session();
  const std::string token = *Grant({1, 2}, "a", session.session_id);
  ASSERT_TRUE(Grant({3}).ok());
  ASSERT_TRUE(Grant({3}, "c").ok());
  auto read = table().BeginRead(0, token);
  fixture_->clock().Turn(seconds(2));
  const std::vector<SessionInfo> sessions = table().ListSessions();
  ASSERT_EQ(sessions.size(), 1u);
  EXPECT_EQ(sessions[0].id, session.session_id);
  EXPECT_EQ(sessions[0].owner, "worker");
  EXPECT_EQ(sessions[0].age, seconds(2));
  EXPECT_EQ(sessions[0].silence, seconds(2));
  EXPECT_EQ(sessions[0].leases, 1u);
  const std::vector<LeaseInfo> first = table().ListLeases(0, 2);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].session_id, session.session_id);
  EXPECT_EQ(first[0].request_id, "a");
  EXPECT_EQ(first[0].reads, 1u);
  EXPECT_EQ(first[0].parts, 2u);
  EXPECT_EQ(first[0].stored_bytes, 2 * LeaseFixture::kBlockBytes);
  EXPECT_EQ(first[1].session_id, "");
  EXPECT_EQ(first[1].left, seconds(28));
  const std::vector<LeaseInfo> second = table().ListLeases(first[1].number, 2);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].request_id, "c");
}

}  // namespace
}  // namespace nqkv
