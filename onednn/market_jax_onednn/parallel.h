// Work shared out to the threads of XLA's own pool.

#ifndef MARKET_JAX_PARALLEL_H_
#define MARKET_JAX_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace market_jax {

// Calls body(i) for i in [0, count), in any order, and returns when all have returned.
//
// The calling thread works too and takes what no other thread has taken, so that a pool that is
// busy, or a thread to which the system gives no time, delays the rest by one call of body at
// most; and nothing can wait for itself. An exception in body is thrown here.
template <typename Body>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
    std::exception_ptr error;
  };
  if (count == 1) return body(0);
  auto shared = std::make_shared<Shared>();
  // a helper that starts late finds nothing to do, and must then not touch body
  auto work = [shared, count, &body] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard lock(shared->mutex);
        shared->error = std::current_exception();
      }
      if (shared->done.fetch_add(1) + 1 == count) {
        std::lock_guard lock(shared->mutex);
        shared->finished.notify_all();
      }
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  for (int spins = 0; spins < 2000 && shared->done.load() < count; ++spins) __builtin_ia32_pause();
  if (shared->done.load() < count) {
    std::unique_lock lock(shared->mutex);
    shared->finished.wait(lock, [&] { return shared->done.load() == count; });
  }
  if (shared->error) std::rethrow_exception(shared->error);
}

}  // namespace market_jax

#endif  // MARKET_JAX_PARALLEL_H_
