/* One instruction's worth of the product: sums [16 rows of a warp, TOKENS] += a [16, STEP] * codes [STEP, TOKENS].

   Of the sums, lane 4g + q holds rows g and g + 8 of tokens 8j + 2q and the next one, as [j][row][token]. On compute
   capability 9.0 by wgmma, which takes the codes from shared memory; elsewhere by mma. */

#define STEP (SPARSE ? 64 : 32) /* columns of an instruction */
#if FLOAT
#define SUM "+f"
#else
#define SUM "+r"
#endif

#if WARPGROUP
__device__ __forceinline__ u64 descriptor(u32 at)
{
    /* No swizzle: 8 tokens x 16 columns lie together, then the next 8 tokens, then the next 16 columns. */
    return (u64)(at >> 4 & 0x3fff) | (u64)TOKENS << 16 | (u64)8 << 32;
}

#if FLOAT
#define TYPES ".f32.e4m3.e4m3 "
#define TAIL ", go, 1, 1;}"
#else
#define TYPES ".s32.s8.s8 "
#define TAIL ", go;}"
#endif
#define GO "{.reg .pred go; setp.ne.b32 go, 1, 0; "
#if SPARSE
#define HEAD(N) GO "wgmma.mma_async.sp.sync.aligned.m64n" N "k64" TYPES
#define OPERANDS(A, B, C, D, DESC, META) ", {%" A ",%" B ",%" C ",%" D "}, %" DESC ", %" META ", 0" TAIL
#else
#define HEAD(N) GO "wgmma.mma_async.sync.aligned.m64n" N "k32" TYPES
#define OPERANDS(A, B, C, D, DESC, META) ", {%" A ",%" B ",%" C ",%" D "}, %" DESC TAIL
#endif
#define S4(I) SUM(s[I]), SUM(s[I + 1]), SUM(s[I + 2]), SUM(s[I + 3])
#define S8(I) S4(I), S4(I + 4)
#define S16(I) S8(I), S8(I + 8)
#define INPUTS "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(descriptor(codes)), "r"(meta)

__device__ __forceinline__ void multiply(Sum *s, Four a, u32 meta, u32 codes)
{
#if TILES == 1
    asm volatile(HEAD("8") "{%0,%1,%2,%3}" OPERANDS("4", "5", "6", "7", "8", "9") : S4(0) : INPUTS);
#elif TILES == 2
    asm volatile(HEAD("16") "{%0,%1,%2,%3,%4,%5,%6,%7}" OPERANDS("8", "9", "10", "11", "12", "13")
                 : S8(0) : INPUTS);
#elif TILES == 4
    asm volatile(HEAD("32") "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
                 OPERANDS("16", "17", "18", "19", "20", "21") : S16(0) : INPUTS);
#else
    asm volatile(HEAD("64") "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
                 "%24,%25,%26,%27,%28,%29,%30,%31}" OPERANDS("32", "33", "34", "35", "36", "37")
                 : S16(0), S16(16) : INPUTS);
#endif
}

__device__ __forceinline__ void begin_products(Sum *s)
{
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        asm volatile("" : SUM(s[i])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void end_products(Sum *s)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        asm volatile("" : SUM(s[i])::"memory");
}
#else
#if FLOAT
#define TYPES ".row.col.f32.e4m3.e4m3.f32 "
#else
#define TYPES ".row.col.s32.s8.s8.s32 "
#endif

__device__ __forceinline__ u32 load_word(u32 at)
{
    u32 out;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(out) : "r"(at));
    return out;
}

__device__ __forceinline__ void multiply(Sum *s, Four a, u32 meta, u32 codes)
{
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        Sum *t = s + 4 * tile;
        u32 b[STEP / 16];
#pragma unroll
        for (int i = 0; i < STEP / 16; i++)
            b[i] = load_word(codes + (i * TOKENS + tile * 8) * 16 + lane * 4);
#if SPARSE
        asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k64" TYPES
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0;"
                     : SUM(t[0]), SUM(t[1]), SUM(t[2]), SUM(t[3])
                     : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]),
                       "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(meta));
#else
        asm volatile("mma.sync.aligned.m16n8k32" TYPES "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : SUM(t[0]), SUM(t[1]), SUM(t[2]), SUM(t[3])
                     : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b[0]), "r"(b[1]));
#endif
    }
}

__device__ __forceinline__ void begin_products(Sum *) {}
__device__ __forceinline__ void commit_products() {}
__device__ __forceinline__ void end_products(Sum *) {}
#endif
