/* The words of metadata that a lane needs of a unit, from what is stored (prepared.py). */

#define BOUNDS (LENGTH == 8 || LENGTH == 10) /* two nibbles for each block */
#define PATTERNS (LENGTH == 6)               /* a nibble for each block */
#define WINDOWS (LENGTH == 2 ? 1 : LENGTH / 2 - 1) /* of a block */

#if SPARSE
/* The first column of the window at a place in the order in which windows are multiplied. */
__device__ __forceinline__ u32 column_of_window(u32 place)
{
    if (BOUNDS)
        return (place / 16 / WINDOWS * 16 + place % 16) * LENGTH + place / 16 % WINDOWS * 2;
    return place / WINDOWS * LENGTH + place % WINDOWS * 2;
}

#if PATTERNS
__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 selectors)
{
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selectors));
    return out;
}

/* Positions of two windows, a byte, for each of the four numbers in the lower half of a word. */
__device__ __forceinline__ u32 positions(u32 low_bits, u32 high_bits)
{
    /* Both halves of the table have the same highest bits, which the mask, 0x80 or 0xff, does not choose. */
    u32 lower = permute(TABLE_0, TABLE_1, low_bits), upper = permute(TABLE_2, TABLE_3, low_bits);
    u32 mask = permute(0x80, 0, high_bits);
    return (upper & mask) | (lower & ~mask);
}

__device__ __forceinline__ void read_metadata(u32 *words, u32 at)
{
    u32 stored[2];
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(stored[0]), "=r"(stored[1]) : "r"(at));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 low_bits = stored[i] & 0x77777777, high_bits = stored[i] & 0x88888888;
        words[2 * i] = positions(low_bits, high_bits);
        words[2 * i + 1] = positions(low_bits >> 16, high_bits >> 16);
    }
}
#elif BOUNDS
/* For eight nibbles n: 8 if n <= k, else 0. */
template <u32 K> __device__ __forceinline__ u32 at_most(u32 nibbles)
{
    return ~(nibbles + (7 - K) * 0x11111111) & 0x88888888;
}

/* Positions of window J of eight blocks: k % 2 + [k >= a] + [k >= b] for k = 2J and 2J + 1 (zeros.py). */
template <u32 J> __device__ __forceinline__ u32 positions(u32 a, u32 b)
{
    u32 even = (at_most<2 * J>(a) >> 3) + (at_most<2 * J>(b) >> 3);
    u32 odd = (at_most<2 * J + 1>(a) >> 1) + (at_most<2 * J + 1>(b) >> 1);
    return 0x44444444 + even + odd;
}

__device__ __forceinline__ void read_metadata(u32 *words, u32 at)
{
    u32 stored[METADATA / 4];
#pragma unroll
    for (int i = 0; i < METADATA / 4; i += 2)
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(stored[i]), "=r"(stored[i + 1]) : "r"(at + 4 * i));
#pragma unroll
    for (int i = 0; i < METADATA / 8; i++) {
        u32 a = stored[2 * i], b = stored[2 * i + 1], *some = words + i * WINDOWS;
        some[0] = positions<0>(a, b);
        some[1] = positions<1>(a, b);
        some[2] = positions<2>(a, b);
        if (WINDOWS == 4)
            some[3] = positions<3>(a, b);
    }
}
#else
__device__ __forceinline__ void read_metadata(u32 *words, u32 at)
{
    Four four = load(at);
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = four.word[i];
}
#endif
#endif
