#include "client/server_address.h"

#include <cstdlib>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace nqkv::client {
namespace {

constexpr char kWorkerSocket[] = "nqkvd.sock";
constexpr char kAdminSocket[] = "nqkvd-admin.sock";
constexpr char kDefaultServer[] = "127.0.0.1:6758";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> SocketDirs(const Arguments& arguments) {
  if (arguments.Has("socket_dir")) return {arguments.Get("socket_dir")};
  std::vector<std::string> folders;
  if (!Environment("NQKV_SOCKET_DIR").empty()) folders.push_back(Environment("NQKV_SOCKET_DIR"));
  folders.push_back("/run/nqkv");
  if (!Environment("XDG_RUNTIME_DIR").empty()) folders.push_back(Environment("XDG_RUNTIME_DIR") + "/nqkv");
  return folders;
}

// "unix:<path>" of the first such socket, made absolute; empty when there is none.
std::string FindSocket(const std::vector<std::string>& folders, const char* name) {
  for (const std::string& folder : folders) {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::absolute(std::filesystem::path(folder) / name, error);
    if (!error && std::filesystem::is_socket(path, error)) return absl::StrCat("unix:", path.string());
  }
  return "";
}

}  // namespace

std::vector<FlagSpec> ServerFlags() {
  return {{"server", "ADDRESS", "host:port or unix:/path (default: the local socket, else 127.0.0.1:6758)"},
          {"socket_dir", "DIR", "where the server's sockets are (default: /run/nqkv, $XDG_RUNTIME_DIR/nqkv)"}};
}

std::string ServerOf(const Arguments& arguments) {
  if (arguments.Has("server")) return arguments.Get("server");
  if (!Environment("NQKV_SERVER").empty()) return Environment("NQKV_SERVER");
  const std::string socket = FindSocket(SocketDirs(arguments), kWorkerSocket);
  return socket.empty() ? kDefaultServer : socket;
}

absl::StatusOr<std::string> AdminServerOf(const Arguments& arguments) {
  if (arguments.Has("admin")) return arguments.Get("admin");
  std::vector<std::string> folders = SocketDirs(arguments);
  const std::string server = ServerOf(arguments);
  if (absl::StartsWith(server, "unix:")) {
    folders.insert(folders.begin(), std::filesystem::path(server.substr(5)).parent_path().string());
  }
  const std::string socket = FindSocket(folders, kAdminSocket);
  if (!socket.empty()) return socket;
  return absl::NotFoundError(absl::StrCat("no admin socket ", folders.front(), "/", kAdminSocket,
                                          ": is nqkvd running? Name its directory with --socket_dir"));
}

}  // namespace nqkv::client
