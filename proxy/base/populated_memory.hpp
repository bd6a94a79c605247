// Memory that is about to be filled from end to end: asked for in one system call instead of a page fault every 4 KB. With a
// million states those faults are a good part of start-up, the more so in a virtual machine.
// Thread: any.
#pragma once

#include <cstddef>
#include <memory_resource>

namespace cairn {

// Fresh memory, not written yet. A hint: where the system cannot do it, the faults come as ever.
void populate(void* memory, std::size_t bytes) noexcept;

// Behind a pool or a monotonic resource: what those ask for in large pieces, populated.
std::pmr::memory_resource& populated_memory();

}  // namespace cairn
