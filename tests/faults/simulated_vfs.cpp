// SQLite's operating system: the simulated disk behind sqlite3_vfs. One connection at a time, so that locks always succeed.
#include <sqlite3.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "simulated_disk.hpp"

namespace cairn::test {

namespace {

SimulatedDisk* disk_in_use = nullptr;

// Lives inside the memory that SQLite gives for a file.
struct OpenFile {
  SimulatedDisk* disk = nullptr;
  SimulatedDisk::File inode;
  std::string path;
  bool name_synced = false;
  bool delete_on_close = false;
  std::vector<std::unique_ptr<char[]>> shared;  // the WAL index: memory, gone with the process
};
struct Handle {
  sqlite3_file base;
  OpenFile* file;
};

OpenFile& opened(sqlite3_file* handle) { return *reinterpret_cast<Handle*>(handle)->file; }

int close_file(sqlite3_file* handle) {
  OpenFile* file = reinterpret_cast<Handle*>(handle)->file;
  const std::lock_guard hold(file->disk->mutex);
  if (file->delete_on_close) file->disk->remove(file->path);
  delete file;
  return SQLITE_OK;
}

int read_file(sqlite3_file* handle, void* out, int bytes, sqlite3_int64 offset) {
  OpenFile& file = opened(handle);
  const std::lock_guard hold(file.disk->mutex);
  if (file.disk->begin("sqlite read")) return SQLITE_IOERR_READ;
  const std::string& data = file.inode->data;
  const auto from = static_cast<std::size_t>(offset);
  const std::size_t there = from < data.size() ? std::min<std::size_t>(data.size() - from, static_cast<std::size_t>(bytes)) : 0;
  if (there > 0) std::memcpy(out, data.data() + from, there);
  std::memset(static_cast<char*>(out) + there, 0, static_cast<std::size_t>(bytes) - there);
  return there == static_cast<std::size_t>(bytes) ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

int write_file(sqlite3_file* handle, const void* data, int bytes, sqlite3_int64 offset) {
  OpenFile& file = opened(handle);
  const std::lock_guard hold(file.disk->mutex);
  int code = file.disk->begin("sqlite write");
  const std::string_view text(static_cast<const char*>(data), static_cast<std::size_t>(bytes));
  if (code == 0) code = file.disk->write(*file.inode, static_cast<std::uint64_t>(offset), text);
  return code == 0 ? SQLITE_OK : code == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

int truncate_file(sqlite3_file* handle, sqlite3_int64 bytes) {
  OpenFile& file = opened(handle);
  const std::lock_guard hold(file.disk->mutex);
  if (file.disk->begin("sqlite truncate")) return SQLITE_IOERR_TRUNCATE;
  return file.disk->truncate(*file.inode, static_cast<std::uint64_t>(bytes)) == 0 ? SQLITE_OK : SQLITE_IOERR_TRUNCATE;
}

int sync_file(sqlite3_file* handle, int) {
  OpenFile& file = opened(handle);
  const std::lock_guard hold(file.disk->mutex);
  if (file.disk->begin("sqlite sync")) return SQLITE_IOERR_FSYNC;
  file.disk->sync(*file.inode);
  // As the unix VFS does after it made a file.
  if (!file.name_synced && !file.path.empty()) file.disk->sync_directory(file.path.substr(0, file.path.rfind('/')));
  file.name_synced = true;
  return SQLITE_OK;
}

int file_size(sqlite3_file* handle, sqlite3_int64* bytes) {
  OpenFile& file = opened(handle);
  const std::lock_guard hold(file.disk->mutex);
  if (file.disk->begin("sqlite size")) return SQLITE_IOERR_FSTAT;
  *bytes = static_cast<sqlite3_int64>(file.inode->data.size());
  return SQLITE_OK;
}

int no_lock(sqlite3_file*, int) { return SQLITE_OK; }
int not_reserved(sqlite3_file*, int* out) { return *out = 0, SQLITE_OK; }
int no_control(sqlite3_file*, int, void*) { return SQLITE_NOTFOUND; }
int sector_bytes(sqlite3_file*) { return 512; }
int characteristics(sqlite3_file*) { return SQLITE_IOCAP_POWERSAFE_OVERWRITE; }

int map_shared(sqlite3_file* handle, int region, int bytes, int extend, void volatile** out) {
  OpenFile& file = opened(handle);
  const auto index = static_cast<std::size_t>(region);
  *out = nullptr;
  if (index >= file.shared.size() && extend == 0) return SQLITE_OK;
  while (file.shared.size() <= index) file.shared.push_back(std::make_unique<char[]>(static_cast<std::size_t>(bytes)));
  *out = file.shared[index].get();
  return SQLITE_OK;
}
int lock_shared(sqlite3_file*, int, int, int) { return SQLITE_OK; }
void shared_barrier(sqlite3_file*) {}
int unmap_shared(sqlite3_file* handle, int) {
  opened(handle).shared.clear();
  return SQLITE_OK;
}

const sqlite3_io_methods io_methods{2,          close_file,   read_file,   write_file,     truncate_file, sync_file,      file_size,
                                    no_lock,    no_lock,      not_reserved, no_control,    sector_bytes,  characteristics, map_shared,
                                    lock_shared, shared_barrier, unmap_shared, nullptr,     nullptr};

int open_file(sqlite3_vfs*, const char* name, sqlite3_file* handle, int flags, int* out_flags) {
  handle->pMethods = nullptr;
  SimulatedDisk& disk = *disk_in_use;
  const std::lock_guard hold(disk.mutex);
  if (disk.begin("sqlite open")) return SQLITE_CANTOPEN;
  auto file = std::make_unique<OpenFile>();
  file->disk = &disk;
  file->delete_on_close = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
  if (name == nullptr) {
    file->inode = disk.anonymous();
    file->delete_on_close = false;
  } else {
    file->path = name;
    if (disk.open(name, (flags & SQLITE_OPEN_CREATE) != 0, file->inode) != 0) return SQLITE_CANTOPEN;
  }
  reinterpret_cast<Handle*>(handle)->file = file.release();
  handle->pMethods = &io_methods;
  if (out_flags != nullptr) *out_flags = flags;
  return SQLITE_OK;
}

int delete_file(sqlite3_vfs*, const char* name, int sync_directory) {
  const std::lock_guard hold(disk_in_use->mutex);
  if (disk_in_use->begin("sqlite delete")) return SQLITE_IOERR_DELETE;
  if (disk_in_use->remove(name) != 0) return SQLITE_IOERR_DELETE_NOENT;
  const std::string path = name;
  if (sync_directory != 0) disk_in_use->sync_directory(path.substr(0, path.rfind('/')));
  return SQLITE_OK;
}

int access_file(sqlite3_vfs*, const char* name, int, int* out) {
  const std::lock_guard hold(disk_in_use->mutex);
  if (disk_in_use->begin("sqlite access")) return SQLITE_IOERR_ACCESS;
  const SimulatedDisk::File file = disk_in_use->find(name);
  *out = file != nullptr && !file->data.empty();
  return SQLITE_OK;
}

int full_path(sqlite3_vfs*, const char* name, int bytes, char* out) {
  sqlite3_snprintf(bytes, out, "%s", name);
  return SQLITE_OK;
}

// The rest is the real one's.
sqlite3_vfs* real_vfs = nullptr;
int randomness(sqlite3_vfs*, int bytes, char* out) { return real_vfs->xRandomness(real_vfs, bytes, out); }
int pause(sqlite3_vfs*, int microseconds) { return real_vfs->xSleep(real_vfs, microseconds); }
int current_time(sqlite3_vfs*, double* out) { return real_vfs->xCurrentTime(real_vfs, out); }
int last_error(sqlite3_vfs*, int, char*) { return 0; }
int current_time_ms(sqlite3_vfs*, sqlite3_int64* out) { return real_vfs->xCurrentTimeInt64(real_vfs, out); }

sqlite3_vfs simulated_vfs() {
  sqlite3_vfs vfs{};
  vfs.iVersion = 2;
  vfs.szOsFile = sizeof(Handle);
  vfs.mxPathname = 512;
  vfs.zName = "simulated";
  vfs.xOpen = open_file;
  vfs.xDelete = delete_file;
  vfs.xAccess = access_file;
  vfs.xFullPathname = full_path;
  vfs.xRandomness = randomness;
  vfs.xSleep = pause;
  vfs.xCurrentTime = current_time;
  vfs.xGetLastError = last_error;
  vfs.xCurrentTimeInt64 = current_time_ms;
  return vfs;
}

}  // namespace

void use_for_sqlite(SimulatedDisk* disk) {
  static sqlite3_vfs vfs = simulated_vfs();
  if (real_vfs == nullptr) real_vfs = sqlite3_vfs_find(nullptr);
  disk_in_use = disk;
  if (disk != nullptr) sqlite3_vfs_register(&vfs, 1);
  else sqlite3_vfs_register(real_vfs, 1);
}

}  // namespace cairn::test
