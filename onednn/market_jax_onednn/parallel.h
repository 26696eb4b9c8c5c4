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

// Threads that have just helped stay awake for a moment, since the next call is often some
// microseconds away and waking one takes longer than a small convolution.
struct Awake {
  static constexpr int kSpins = 1000;  // some tens of microseconds

  std::atomic<int> threads{0};
  std::atomic<int64_t> calls{0};
  std::mutex mutex;
  std::function<void()> work;  // of the last call

  static Awake& Instance() {
    static Awake* instance = new Awake;  // outlives the pool's threads
    return *instance;
  }

  // Hands a call's work to those who are awake; returns how many they are.
  int Offer(const std::function<void()>& own) {
    if (threads.load() == 0) return 0;
    std::lock_guard lock(mutex);
    work = own;
    calls.fetch_add(1);
    return threads.load();
  }

  // In a helper: does its own work, then what is offered in the moment after.
  void Help(std::function<void()> own) {
    for (int64_t seen = calls.load();;) {
      own();
      own = nullptr;
      threads.fetch_add(1);
      for (int i = 0; i < kSpins && calls.load() == seen; ++i) __builtin_ia32_pause();
      threads.fetch_sub(1);
      std::lock_guard lock(mutex);
      if (calls.load() == seen) return;
      seen = calls.load();
      own = work;
    }
  }
};

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
  std::function<void()> work = [shared, count, &body] {
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
  for (int64_t i = Awake::Instance().Offer(work); i < helpers; ++i) {
    pool.Schedule([work] { Awake::Instance().Help(work); });
  }
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
