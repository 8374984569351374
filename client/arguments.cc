#include "client/arguments.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace nqkv::client {
namespace {

constexpr char kUsagePayload[] = "nqkv/usage";
constexpr char kReportedPayload[] = "nqkv/reported";

std::vector<std::string> PositionalNames(const CommandLine& command) {
  return absl::StrSplit(command.positional, ' ', absl::SkipEmpty());
}

const FlagSpec* FindFlag(const CommandLine& command, const std::string& name) {
  const auto it =
      std::find_if(command.flags.begin(), command.flags.end(), [&](const FlagSpec& flag) { return flag.name == name; });
  return it == command.flags.end() ? nullptr : &*it;
}

}  // namespace

std::string HelpText(const CommandLine& command) {
  std::string text = absl::StrCat(command.summary, "\n\nUsage: nqkv ", command.name);
  if (!command.positional.empty()) absl::StrAppend(&text, " ", command.positional);
  absl::StrAppend(&text, " [flags]\n\nFlags:\n");
  size_t width = 0;
  for (const FlagSpec& flag : command.flags) width = std::max(width, flag.name.size() + flag.value.size() + 1);
  for (const FlagSpec& flag : command.flags) {
    const std::string left = absl::StrCat("--", flag.name, flag.value.empty() ? "" : " ", flag.value);
    absl::StrAppend(&text, "  ", left, std::string(width + 4 - left.size(), ' '), flag.help, "\n");
  }
  if (!command.examples.empty()) absl::StrAppend(&text, "\nExamples:\n");
  for (const std::string& example : command.examples) absl::StrAppend(&text, "  ", example, "\n");
  return text;
}

absl::Status UsageError(const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsagePayload).has_value(); }

absl::Status Reported(absl::Status status) {
  status.SetPayload(kReportedPayload, absl::Cord());
  return status;
}

bool IsReported(const absl::Status& status) { return status.GetPayload(kReportedPayload).has_value(); }

absl::StatusOr<Arguments> Arguments::Parse(const CommandLine& command, std::span<const std::string> words) {
  Arguments arguments;
  bool flags_ended = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!flags_ended && word == "--") {
      flags_ended = true;
      continue;
    }
    if (flags_ended || !absl::StartsWith(word, "--")) {
      arguments.positional_.push_back(word);
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name =
        absl::StrReplaceAll(word.substr(2, equals == std::string::npos ? equals : equals - 2), {{"-", "_"}});
    const FlagSpec* flag = FindFlag(command, name);
    if (flag == nullptr) return UsageError(absl::StrCat("unknown flag ", word));
    if (flag->value.empty() && equals != std::string::npos) return UsageError(absl::StrCat(word, ": takes no value"));
    if (!flag->value.empty() && equals == std::string::npos && i + 1 == words.size()) {
      return UsageError(absl::StrCat(word, ": needs a value, ", flag->value));
    }
    std::string value;
    if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (!flag->value.empty()) {
      value = words[++i];
    }
    arguments.flags_[name] = value;
  }
  const std::vector<std::string> names = PositionalNames(command);
  if (arguments.positional_.size() > names.size()) {
    return UsageError(absl::StrCat("unexpected '", arguments.positional_[names.size()], "'"));
  }
  if (arguments.positional_.size() < names.size()) {
    return UsageError(absl::StrCat(names[arguments.positional_.size()], " is missing"));
  }
  return arguments;
}

std::string Arguments::Get(const std::string& flag, const std::string& otherwise) const {
  const auto it = flags_.find(flag);
  return it == flags_.end() ? otherwise : it->second;
}

absl::StatusOr<uint64_t> Arguments::GetNumber(const std::string& flag, uint64_t otherwise, uint64_t least,
                                              uint64_t most) const {
  if (!Has(flag)) return otherwise;
  uint64_t number = 0;
  if (!absl::SimpleAtoi(Get(flag), &number) || number < least || number > most) {
    return UsageError(absl::StrCat("--", flag, ": '", Get(flag), "' is not a number from ", least, " to ", most));
  }
  return number;
}

}  // namespace nqkv::client
