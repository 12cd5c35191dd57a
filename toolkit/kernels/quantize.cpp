// Quantize rows of float32 or bfloat16 into ggml's block types, byte for byte as ggml does it, many blocks at a time.
//
// ggml (https://github.com/ggml-org/ggml, MIT) defines the formats and the arithmetic; the code is ours. This file is
// compiled once for each instruction set (LEVEL 0: what every machine of the architecture has, 1: AVX2, 2: AVX-512).
// Blocks outside the range in which the fast way is proven to give ggml's bits are handed to ggml itself.

#include <stdlib.h>

#include "small.h"

#ifndef LEVEL
#define LEVEL 0
#endif
#define JOIN(a, b) a##b
#define NAMED(level) JOIN(quantize_level_, level)

// ggml_quantize_chunk(type, source, destination, first weight, rows, columns, importance)
typedef size_t (*Reference)(int, const float *, void *, int64_t, int64_t, int64_t, const float *);

struct Task {
    int type;
    int bfloat16;
    const uint8_t *source;
    uint8_t *target;
    int64_t rows, columns;
    const float *importance;  // null, or one value a column
    Reference reference;
};

namespace {

// Where the values from the `first` on stand as float32 already, or null.
INLINE const float *in_place(const Task &task, int64_t first) {
    const uint8_t *at = task.source + 4 * first;
    return task.bfloat16 || (uintptr_t)at % alignof(float) ? nullptr : reinterpret_cast<const float *>(at);
}

// `count` values from the `first` on as float32: in place, or converted into `room`.
INLINE const float *values(const Task &task, int64_t first, int64_t count, float *room) {
    if (const float *there = in_place(task, first)) return there;
    if (!task.bfloat16) {
        memcpy(room, task.source + 4 * first, 4 * count);
        return room;
    }
    const uint8_t *at = task.source + 2 * first;
    for (int64_t i = 0; i < count; i += WIDTH) store(room + i, widened(at + 2 * i));
    return room;
}

// ggml itself on one block or row; false if there is no memory for it.
bool refer(const Task &task, int64_t first, int64_t columns, const float *importance, uint8_t *out) {
    float *room = static_cast<float *>(malloc(4 * columns));
    if (!room) return false;
    task.reference(task.type, values(task, first, columns, room), out, 0, 1, columns, importance);
    free(room);
    return true;
}

// Returns how many blocks (or rows) ggml was asked for, or -1 without memory.
template <class Type, int SIZE> int64_t run(const Task &task, bool by_row) {
    static const float zeros[256] = {};
    float room[LANES][SIZE];
    Batch batch;
    batch.weighted = task.importance != nullptr;
    const int64_t per_row = task.columns / SIZE, blocks = task.rows * per_row;
    const int64_t group = by_row ? LANES * per_row : blocks;  // the blocks whose rows are weighed at once
    int64_t referred = 0;
    for (int64_t start = 0; start < blocks; start += group) {
        const int64_t end = start + group < blocks ? start + group : blocks;
        float variances[LANES] = {};
        bool lost[LANES] = {};
        if (by_row) {
            Real sum(0);
            for (int64_t column = 0; column < task.columns; column += SIZE) {
                for (int64_t lane = 0; lane < LANES; ++lane) {
                    const bool there = lane * per_row < end - start;
                    const int64_t first = (start / per_row + lane) * task.columns + column;
                    batch.rows[lane] = there ? values(task, first, SIZE, room[lane]) : zeros;
                }
                sum = squares(batch.rows, 0, SIZE, sum);
            }
            store(variances, sum / Real((float)task.columns));
        }
        for (int64_t block = start; block < end; block += LANES) {
            batch.count = (int)(end - block < LANES ? end - block : LANES);
            batch.out = task.target + block * Type::BYTES;
            const float *first = in_place(task, block * SIZE);
            for (int lane = 0; lane < LANES; ++lane) batch.rows[lane] = zeros;
            if (first) {  // a loop of its own, which becomes vectors
                for (int lane = 0; lane < batch.count; ++lane) batch.rows[lane] = first + lane * SIZE;
            } else {
                for (int lane = 0; lane < batch.count; ++lane) {
                    batch.rows[lane] = values(task, (block + lane) * SIZE, SIZE, room[lane]);
                }
            }
            for (int lane = 0; lane < LANES && batch.weighted; ++lane) {
                const bool there = lane < batch.count;
                const int64_t number = block + lane;
                batch.importance[lane] = there ? task.importance + number % per_row * SIZE : zeros;
                batch.squares[lane] = there && by_row ? variances[(number - start) / per_row] : 0;
            }
            Type::quantize(batch);
            if (every(load<Ints>(batch.sure) & load<Ints>(batch.sure + WIDTH))) continue;
            for (int lane = 0; lane < batch.count; ++lane) {
                if (batch.sure[lane]) continue;
                const int64_t number = block + lane;
                if (by_row) {
                    lost[(number - start) / per_row] = true;
                    continue;
                }
                ++referred;
                const float *importance = batch.weighted ? batch.importance[lane] : nullptr;
                if (!refer(task, number * SIZE, SIZE, importance, batch.out + lane * Type::BYTES)) return -1;
            }
        }
        for (int lane = 0; lane < LANES; ++lane) {
            if (!lost[lane]) continue;
            ++referred;
            const int64_t row = start / per_row + lane;
            uint8_t *out = task.target + row * per_row * Type::BYTES;
            if (!refer(task, row * task.columns, task.columns, task.importance, out)) return -1;
        }
    }
    return referred;
}

}  // namespace

// Types by ggml's numbers.
extern "C" __attribute__((visibility("hidden"))) int64_t NAMED(LEVEL)(const Task *task) {
    const bool weighted = task->importance != nullptr;
    switch (task->type) {
        case 2: return run<Q4_0, 32>(*task, weighted);
        case 3: return run<Q4_1, 32>(*task, weighted);
        case 6: return run<Q5_0, 32>(*task, weighted);
        case 7: return run<Q5_1, 32>(*task, weighted);
        case 8: return run<Q8_0, 32>(*task, false);
        case 10: return run<Q2_K, 256>(*task, false);
        case 11: return run<Q3_K, 256>(*task, false);
        case 12: return run<Q4_K, 256>(*task, false);
        case 13: return run<Q5_K, 256>(*task, false);
        case 14: return run<Q6_K, 256>(*task, false);
        case 20: return run<IQ4_NL, 32>(*task, false);
        case 23: return run<IQ4_XS, 256>(*task, false);
        default: return -2;
    }
}

#if LEVEL == 0
#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) int64_t quantize_level_1(const Task *);
extern "C" __attribute__((visibility("hidden"))) int64_t quantize_level_2(const Task *);
#endif

// The best instruction set of this machine that there is code for.
extern "C" __attribute__((visibility("default"))) int toolkit_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        return 2;
    }
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

// Quantize `rows` × `columns` values (columns divide into the type's blocks). Returns how many blocks, or with
// importance rows, went through `reference`; -1 without memory, -2 for an unknown type. Any addresses will do but for
// `importance`, which is aligned.
extern "C" __attribute__((visibility("default"))) int64_t toolkit_quantize(
    int level, int type, int bfloat16, const void *source, void *target, int64_t rows, int64_t columns,
    const float *importance, Reference reference) {
    const auto *from = static_cast<const uint8_t *>(source);
    const Task task = {type, bfloat16, from, static_cast<uint8_t *>(target), rows, columns, importance, reference};
#if defined(__x86_64__)
    if (level == 2) return quantize_level_2(&task);
    if (level == 1) return quantize_level_1(&task);
#else
    (void)level;
#endif
    return quantize_level_0(&task);
}
#endif
