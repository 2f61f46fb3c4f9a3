// What the tests call: every kernel and every reference on plain arrays, on threads of the caller's.
#include "kernels.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Barrier {
    std::mutex              mutex;
    std::condition_variable all_here;
    int                     count, waiting = 0, round = 0;
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        if (++waiting == count) {
            waiting = 0;
            round++;
            all_here.notify_all();
            return;
        }
        all_here.wait(lock, [&, now = round] { return round != now; });
    }
};

}  // namespace

EXPORT bool gorgon_test_runs(const char * isa) { return find_kernels(isa) != nullptr; }

EXPORT void gorgon_test_pack(int type, int64_t columns, int64_t rows, const void * src, void * dst) {
    pack_rows(*find_layout(type), columns, rows, src, dst);
}

EXPORT void gorgon_test_unpack(int type, int64_t columns, int64_t rows, const void * packed, float * out) {
    for (int64_t r = 0; r < rows; r++) unpack_row(*find_layout(type), columns, packed, r, out + r * columns);
}

// isa "": the references; else the kernels
EXPORT void gorgon_test_multiply(const char * isa, int type, int64_t columns, int64_t rows, const void * packed, const float * x, int64_t n, float * y) {
    std::vector<Activation> activations(n * columns / BLOCK);
    if (!*isa) {
        for (int64_t j = 0; j < n; j++) quantize_reference(x + j * columns, columns, 0, activations.data() + j * columns / BLOCK);
        multiply_reference(*find_layout(type), columns, rows, packed, activations.data(), n, y);
        return;
    }
    const Kernels & kernels = *find_kernels(isa);
    for (int64_t j = 0; j < n; j++) kernels.quantize(x + j * columns, columns, kernels.bias(type), activations.data() + j * columns / BLOCK);
    kernels.multiply(type, packed, columns, 0, rows / GROUP, activations.data(), n, y, rows);
}

EXPORT void gorgon_test_quantize(const char * isa, const float * x, int64_t columns, int bias, void * out) {
    if (!*isa) return quantize_reference(x, columns, bias, static_cast<Activation *>(out));
    find_kernels(isa)->quantize(x, columns, bias, static_cast<Activation *>(out));
}

EXPORT int64_t gorgon_test_likeliest(const char * isa, const float * logits, int64_t n) { return find_kernels(isa)->likeliest(logits, n); }

EXPORT float gorgon_test_weigh(const char * isa, const float * logits, int64_t n, float temperature, float most, float * weights) {
    return find_kernels(isa)->weigh(logits, n, temperature, most, weights);
}

EXPORT float gorgon_test_best_of(const char * isa, const float * logits, int64_t n, int64_t k, float * values, int32_t * places) {
    return find_kernels(isa)->best_of(logits, n, k, values, places);
}

EXPORT void gorgon_test_attend(const char * isa, const Attention * a, int num_threads) {
    if (!*isa) return attend_reference(*a);
    const Kernels & kernels = *find_kernels(isa);
    std::vector<char> scratch(kernels.attention_scratch(*a, num_threads), '\xff');  // NaN wherever nothing was written
    Barrier barrier;
    barrier.count = num_threads;
    const auto work = [&](int index) {
        kernels.attend(*a, {index, num_threads, scratch.data(), [](void * b) { static_cast<Barrier *>(b)->wait(); }, &barrier});
    };
    std::vector<std::thread> threads;
    for (int t = 1; t < num_threads; t++) threads.emplace_back(work, t);
    work(0);
    for (auto & thread : threads) thread.join();
}
