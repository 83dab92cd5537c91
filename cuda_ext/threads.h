// Threads that wait for work, and a place where they meet.
#pragma once

#include <atomic>
#include <functional>

namespace acorn::cpu {

// Where `count` threads wait for each other: spinning at first, for most waits are short.
class Meeting {
   public:
    struct Broken {};  // what `wait` throws once any thread has left

    explicit Meeting(int count) : count_(count) {}
    int count() const { return count_; }

    // Returns once all are here. The last to come does `between` first, while the others wait.
    void wait(const std::function<void()>& between = {});
    void leave() { left_.store(true, std::memory_order_relaxed); }

   private:
    const int count_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
    std::atomic<bool> left_{false};
};

// Runs job(thread, meeting) for thread 0 .. meeting.count() - 1 at once, thread 0 on the calling thread, and returns
// when all are done. There are at most as many threads as asked for, and one while another caller uses them. They
// are kept for the next call. An exception of any job is thrown again here; the others then wait for it no more.
void together(int threads, const std::function<void(int thread, Meeting& meeting)>& job);

}  // namespace acorn::cpu
