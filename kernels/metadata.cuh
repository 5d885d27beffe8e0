/* The words of metadata that a lane needs of a unit, from what is stored (prepared.py). */

#define BOUNDS (LENGTH == 8 || LENGTH == 10) /* two nibbles for each block */
#define PATTERNS (LENGTH == 6)               /* a nibble for each block */
#define ODD (LENGTH == 8 && METADATA == 8)   /* half a unit of 2:8 has three steps: of the fourth word nothing is used */
#define WINDOWS (LENGTH == 2 ? 1 : LENGTH / 2 - 1) /* of a block */

#if SPARSE
/* A lane's metadata of a unit. What must be decoded is kept as it is stored; positions are read when they are used: they
   would stay in registers that the tensor cores still read when those of the next unit come. */
struct Metadata {
#if BOUNDS || PATTERNS
    u32 stored[METADATA / 4 + 2 * ODD];
#else
    u32 at;
#endif

    __device__ __forceinline__ Metadata() {}
    __device__ __forceinline__ explicit Metadata(u32 at);
    /* Words of two steps, a piece of codes. */
    __device__ __forceinline__ void read(u32 *words, u32 piece) const;
};

__device__ __forceinline__ void load_two(u32 *words, u32 at)
{
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(at));
}

#if BOUNDS || PATTERNS
__device__ __forceinline__ Metadata::Metadata(u32 at)
{
#pragma unroll
    for (int i = 0; i < METADATA / 4; i += 2)
        load_two(stored + i, at + 4 * i);
}
#endif

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

__device__ __forceinline__ void Metadata::read(u32 *words, u32 piece) const
{
    u32 low_bits = stored[piece] & 0x77777777, high_bits = stored[piece] & 0x88888888;
    words[0] = positions(low_bits, high_bits);
    words[1] = positions(low_bits >> 16, high_bits >> 16);
}
#elif BOUNDS
/* For eight nibbles n: 8 if n <= k, else 0. */
__device__ __forceinline__ u32 at_most(u32 k, u32 nibbles) { return ~(nibbles + (7 - k) * 0x11111111) & 0x88888888; }

/* Positions of window j of eight blocks: k % 2 + [k >= a] + [k >= b] for k = 2j and 2j + 1 (zeros.py). */
__device__ __forceinline__ u32 positions(u32 a, u32 b, u32 j)
{
    u32 even = (at_most(2 * j, a) >> 3) + (at_most(2 * j, b) >> 3);
    u32 odd = (at_most(2 * j + 1, a) >> 1) + (at_most(2 * j + 1, b) >> 1);
    return 0x44444444 + even + odd;
}

__device__ __forceinline__ void Metadata::read(u32 *words, u32 piece) const
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 step = 2 * piece + i, blocks = step / WINDOWS;
        words[i] = positions(stored[2 * blocks], stored[2 * blocks + 1], step % WINDOWS);
    }
}
#else
__device__ __forceinline__ Metadata::Metadata(u32 at) : at(at) {}

__device__ __forceinline__ void Metadata::read(u32 *words, u32 piece) const { load_two(words, at + 8 * piece); }
#endif
#endif
