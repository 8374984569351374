#include "client/command.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace nqkv::client {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;

void Print(FILE* file, const std::string& text) { std::fwrite(text.data(), 1, text.size(), file); }

std::string Overview() {
  std::string text = "nqkv talks to nqkvd, a shared cache tier for the KV tensors of LLM inference.\n\nCommands:\n";
  for (const Command& command : AllCommands()) {
    if (command.hidden) continue;
    const std::string& name = command.line.name;
    absl::StrAppend(&text, "  ", name, std::string(8 - std::min<size_t>(name.size(), 7), ' '), command.line.summary,
                    "\n");
  }
  absl::StrAppend(&text,
                  "  help    Explain a command, with examples: nqkv help put\n\n"
                  "Each takes --json for scripts. Exit codes: 0 done, 1 failed, 2 called wrongly.\n");
  return text;
}

const Command* Find(const std::vector<Command>& commands, const std::string& name) {
  const auto it =
      std::find_if(commands.begin(), commands.end(), [&](const Command& command) { return command.line.name == name; });
  return it == commands.end() ? nullptr : &*it;
}

// Details of an error may hold anything; the user gets one line.
std::string OneLine(const absl::Status& status) {
  const std::string code = IsUsageError(status) ? "" : absl::StrCat(absl::StatusCodeToString(status.code()), ": ");
  return absl::StrReplaceAll(absl::StrCat(code, status.message()), {{"\n", " "}, {"\r", " "}});
}

int Report(const std::string& command, const absl::Status& status) {
  if (status.ok()) return kDone;
  if (IsReported(status)) return kFailed;
  Print(stderr, absl::StrCat("nqkv ", command, ": ", OneLine(status), "\n"));
  if (!IsUsageError(status)) return kFailed;
  Print(stderr, absl::StrCat("See: nqkv help ", command, "\n"));
  return kUsage;
}

int Help(const std::vector<Command>& commands, const std::vector<std::string>& words) {
  if (words.size() < 2) {
    Print(stdout, Overview());
    return kDone;
  }
  const Command* command = Find(commands, words[1]);
  if (command == nullptr) {
    Print(stderr, absl::StrCat("nqkv help: there is no command '", words[1], "'\n"));
    return kUsage;
  }
  Print(stdout, HelpText(command->line));
  return kDone;
}

}  // namespace

std::vector<Command> AllCommands() {
  return {OpenCommand(), LookupCommand(), PutCommand(),       GetCommand(),
          StatCommand(), DemoCommand(),   DemoWorkerCommand()};
}

int RunCommandLine(const std::vector<std::string>& words) {
  const std::vector<Command> commands = AllCommands();
  if (words.empty()) {
    Print(stderr, Overview());
    return kUsage;
  }
  if (words[0] == "help" || words[0] == "--help" || words[0] == "-h") return Help(commands, words);
  const Command* command = Find(commands, words[0]);
  if (command == nullptr) {
    Print(stderr, absl::StrCat("nqkv: there is no command '", words[0], "'; nqkv help lists them\n"));
    return kUsage;
  }
  const std::vector<std::string> rest(words.begin() + 1, words.end());
  if (std::find(rest.begin(), rest.end(), "--help") != rest.end()) return Help(commands, {"help", words[0]});
  absl::StatusOr<Arguments> arguments = Arguments::Parse(command->line, rest);
  return Report(words[0], arguments.ok() ? command->run(*arguments) : arguments.status());
}

}  // namespace nqkv::client
