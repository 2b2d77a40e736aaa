// Independent tasks over torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

namespace ptv2 {

// Run task(workspace, i) for each i < count; every thread makes a workspace and takes the next task
// when it is done with one, so that tasks of different size balance.
template <typename Workspace, typename Make, typename Task>
void for_each_task(int64_t count, const Make& make, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Workspace workspace = make();
    for (int64_t i = next++; i < count; i = next++) {
      task(workspace, i);
    }
  });
}

}  // namespace ptv2
