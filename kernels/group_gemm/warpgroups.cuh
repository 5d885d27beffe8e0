/* Products by wgmma: a warpgroup multiplies 64 rows, 16 of each of its warps, with activations that lie in shared memory
   as activations.cuh says. Its warps decode one step while tensor cores multiply the one before. */

#define S4(I) "+f"(s[I]), "+f"(s[I + 1]), "+f"(s[I + 2]), "+f"(s[I + 3])
#define S8(I) S4(I), S4(I + 4)
#define S16(I) S8(I), S8(I + 8)
#define HEAD(N) "{.reg .pred go; setp.ne.b32 go, 1, 0; wgmma.mma_async.sync.aligned.m64n" N "k16.f32.f16.f16 "
#define OPERANDS(A, B, C, D, X) ", {%" A ",%" B ",%" C ",%" D "}, %" X ", go, 1, 1, 0;}"
#define INPUTS "r"(rows[0]), "r"(rows8[0]), "r"(rows[1]), "r"(rows8[1]), "l"(descriptor(x))

__device__ __forceinline__ u64 descriptor(u32 at)
{
    /* No swizzle: 8 tokens x 8 columns lie together, then the next 8 tokens, then the next 8 columns. */
    return (u64)(at >> 4 & 0x3fff) | (u64)TOKENS << 16 | (u64)8 << 32;
}

/* s [rows g and g + 8 of 16][TOKENS] += rows and rows8 of 16 columns * x. */
__device__ __forceinline__ void multiply_rows(float *s, const u32 *rows, const u32 *rows8, u32 x)
{
#if TILES == 2
    asm volatile(HEAD("16") "{%0,%1,%2,%3,%4,%5,%6,%7}" OPERANDS("8", "9", "10", "11", "12") : S8(0) : INPUTS);
#elif TILES == 4
    asm volatile(HEAD("32") "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
                 OPERANDS("16", "17", "18", "19", "20") : S16(0) : INPUTS);
#else
    asm volatile(HEAD("64") "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
                 "%24,%25,%26,%27,%28,%29,%30,%31}" OPERANDS("32", "33", "34", "35", "36") : S16(0), S16(16) : INPUTS);
#endif
}

/* Registers that tensor cores read or write: not to be touched by what comes before in between. */
template <int COUNT> __device__ __forceinline__ void settle(float *sums)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING> __device__ __forceinline__ void wait_products()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* sums [2 times 16 rows][TILES][4] += a chunk, zeros unless it `exists`, * its activations, at x. */
__device__ __forceinline__ void multiply_chunk(float *sums, u32 chunk, u32 exists, const float *factor, const u8 *x)
{
    Cursor cursor;
    load<4>(chunk, &cursor.groups);
    cursor.groups += chunk;
    cursor.pieces = chunk + PIECES_AT;
    u32 from = address(x);
    settle<8 * TILES>(sums);
#pragma unroll(STEPS == 4 ? 4 : 2)
    for (int step = 0; step < STEPS; step++) {
        u32 masks[4], a[4][2 * MMAS];
        load<16>(chunk + HEADER + step * 16, masks);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 mask = masks[i] & exists;
            decode(cursor, mask, factor[i], a[i]);
            cursor.advance(mask);
        }
        begin_products();
#pragma unroll
        for (int i = 0; i < MMAS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                multiply_rows(sums + half * TILES * 4, a[2 * half] + 2 * i, a[2 * half + 1] + 2 * i,
                              from + (step * MMAS + i) * (32 * TOKENS));
        commit_products();
        wait_products<1>(); /* registers of the step before are free */
    }
    wait_products<0>();
    settle<8 * TILES>(sums);
}
