#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace acorn::cpu {
namespace {

constexpr int SPINS = 4000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Pool {
   public:
    using Job = std::function<void(int, Meeting&)>;

    // Grows to `count` threads beside the caller; fewer where the system refuses.
    int grow(int count) {
        try {
            while (static_cast<int>(threads_.size()) < count) {
                threads_.emplace_back([this, number = static_cast<int>(threads_.size()) + 1] { serve(number); });
            }
        } catch (const std::system_error&) {
            // what there is must do
        }
        return std::min(static_cast<int>(threads_.size()), count);
    }

    void run(int helpers, const Job& job) {
        Meeting meeting(helpers + 1);
        {
            std::lock_guard lock(mutex_);
            job_ = &job;
            meeting_ = &meeting;
            helpers_ = running_ = helpers;
            failure_ = nullptr;
            ++round_;
        }
        start_.notify_all();
        attempt(job, 0, meeting);
        std::unique_lock lock(mutex_);
        finished_.wait(lock, [this] { return running_ == 0; });
        if (failure_) std::rethrow_exception(failure_);
    }

   private:
    void serve(int number) {
        unsigned seen = 0;
        for (;;) {
            const Job* job;
            Meeting* meeting;
            {
                std::unique_lock lock(mutex_);
                start_.wait(lock, [&] { return round_ != seen; });
                seen = round_;
                if (number > helpers_) continue;
                job = job_;
                meeting = meeting_;
            }
            attempt(*job, number, *meeting);
            std::lock_guard lock(mutex_);
            if (--running_ == 0) finished_.notify_one();
        }
    }

    void attempt(const Job& job, int thread, Meeting& meeting) {
        try {
            job(thread, meeting);
        } catch (...) {
            std::lock_guard lock(mutex_);
            if (!failure_) failure_ = std::current_exception();
            meeting.leave();
        }
    }

    std::mutex mutex_;
    std::condition_variable start_, finished_;
    std::vector<std::thread> threads_;
    const Job* job_ = nullptr;
    Meeting* meeting_ = nullptr;
    int helpers_ = 0, running_ = 0;
    unsigned round_ = 0;
    std::exception_ptr failure_;
};

std::mutex in_use;

// The pool of this process. A forked child has none of its parent's threads: it starts its own. A pool is
// never destroyed, for its threads wait for work until the process ends.
Pool& pool() {
    static Pool* current = nullptr;
    static pid_t owner = 0;
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void together(int threads, const std::function<void(int, Meeting&)>& job) {
    if (threads > 1) {
        std::unique_lock lock(in_use, std::try_to_lock);
        if (lock.owns_lock()) {
            Pool& pool = acorn::cpu::pool();
            return pool.run(pool.grow(threads - 1), job);
        }
    }
    Meeting alone(1);
    job(0, alone);
}

void Meeting::wait(const std::function<void()>& between) {
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        if (between) between();
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin) {
        if (left_.load(std::memory_order_relaxed)) throw Broken();
        if (spin < SPINS) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace acorn::cpu
