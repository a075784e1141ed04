/* Assembly that begins a loop: the column to r0 and a branch into the loop's code, from two words of the frame. */
#ifndef TK_GO_H
#define TK_GO_H

/* One instruction where these words are the stack's first two, as the compiler does it. */
#define TK_GO(column, code)                                                                                            \
    ".ifeqs \"" column " " code "\", \"[sp] [sp, #4]\"\n"                                                               \
    "ldmia.w sp, {r0, pc}\n"                                                                                           \
    ".else\n"                                                                                                          \
    "ldr r0, " column "\n"                                                                                             \
    "ldr pc, " code "\n"                                                                                               \
    ".endif\n"

#endif
