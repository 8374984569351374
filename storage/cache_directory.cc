#include "storage/cache_directory.h"

#include <algorithm>
#include <atomic>
#include <new>

namespace nqkv {

CacheDirectory::CacheDirectory(std::span<std::byte> memory, bool restored, CacheId id_used_max)
    : entries_(reinterpret_cast<Entry*>(memory.data()), kNamesMax), asked_for_(kNamesMax), next_id_(id_used_max + 1) {
  for (Entry& entry : entries_) {
    if (!restored) new (&entry) Entry;
    next_id_ = std::max(next_id_, entry.id + 1);
  }
}

CacheDirectory::Named CacheDirectory::Name(const Digest& name, const Digest& spec) {
  size_t index = 0;
  while (index < kNamesMax && (entries_[index].id == 0 || entries_[index].name != name)) ++index;
  Named named;
  if (index < kNamesMax) {
    asked_for_[index] = true;
    named.id = entries_[index].id;
    if (entries_[index].spec == spec) return named;
    named.spec_changed = true;
  } else {
    // A free entry, else one that nobody asks for any more.
    index = 0;
    while (index < kNamesMax && entries_[index].id != 0) ++index;
    if (index == kNamesMax) {
      index = static_cast<size_t>(std::find(asked_for_.begin(), asked_for_.end(), false) - asked_for_.begin());
    }
  }
  named.id = next_id_++;
  if (index == kNamesMax) return named;
  if (entries_[index].id != 0) named.given_up = entries_[index].id;
  asked_for_[index] = true;
  Write(index, named.id, name, spec);
  return named;
}

void CacheDirectory::Write(size_t index, CacheId id, const Digest& name, const Digest& spec) {
  Entry& entry = entries_[index];
  std::atomic_ref<uint32_t> stored_id(entry.id);
  stored_id.store(0, std::memory_order_seq_cst);
  entry.name = name;
  entry.spec = spec;
  stored_id.store(id, std::memory_order_release);
}

}  // namespace nqkv
