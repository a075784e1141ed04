/* Core registers of ARMv7-M that the firmware uses. Source: ARM DDI 0403E, sections B3.2 (system control space) and C1.8
 * (DWT); the lock access register of the Cortex-M7's DWT: ARM DDI 0489F, section 9. */
#ifndef TK_ARMV7M_H
#define TK_ARMV7M_H

#include <stdint.h>

#define TK_REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define TK_SCB_VTOR TK_REG(0xE000ED08U)
#define TK_SCB_AIRCR TK_REG(0xE000ED0CU)
#define TK_SCB_AIRCR_SYSRESETREQ (0x05FA0000U | (1U << 2))
#define TK_SCB_CCR TK_REG(0xE000ED14U)
#define TK_SCB_CCR_DC (1U << 16)
#define TK_SCB_CCR_IC (1U << 17)
#define TK_SCB_CFSR TK_REG(0xE000ED28U)
#define TK_SCB_CCSIDR TK_REG(0xE000ED80U)
#define TK_SCB_CSSELR TK_REG(0xE000ED84U)
#define TK_SCB_CPACR TK_REG(0xE000ED88U)
#define TK_SCB_CPACR_FPU_FULL (0xFU << 20)
#define TK_SCB_ICIALLU TK_REG(0xE000EF50U)
#define TK_SCB_DCISW TK_REG(0xE000EF60U)

#define TK_DEMCR TK_REG(0xE000EDFCU)
#define TK_DEMCR_TRCENA (1U << 24)
#define TK_DWT_CTRL TK_REG(0xE0001000U)
#define TK_DWT_CTRL_CYCCNTENA (1U << 0)
#define TK_DWT_CYCCNT TK_REG(0xE0001004U)
#define TK_DWT_LAR TK_REG(0xE0001FB0U)
#define TK_DWT_LAR_KEY 0xC5ACCE55U

/* Wait until every earlier memory access is complete, and refetch the instructions that follow. */
static inline void tk_barrier(void)
{
    __asm volatile("dsb\n\tisb" ::: "memory");
}

/* Restart the chip through the interrupt controller (SYSRESETREQ). */
static inline _Noreturn void tk_armv7m_reset(void)
{
    tk_barrier();
    TK_SCB_AIRCR = TK_SCB_AIRCR_SYSRESETREQ;
    tk_barrier();
    for (;;) {
    }
}

/* Start the cycle counter from 0. Harmless where the counter has no lock. */
static inline void tk_armv7m_start_cycles(void)
{
    TK_DEMCR |= TK_DEMCR_TRCENA;
    TK_DWT_LAR = TK_DWT_LAR_KEY;
    TK_DWT_CYCCNT = 0;
    TK_DWT_CTRL |= TK_DWT_CTRL_CYCCNTENA;
}

/* Invalidate and enable the instruction cache (Cortex-M7). */
static inline void tk_armv7m_enable_icache(void)
{
    tk_barrier();
    TK_SCB_ICIALLU = 0;
    tk_barrier();
    TK_SCB_CCR |= TK_SCB_CCR_IC;
    tk_barrier();
}

/* Invalidate by set and way, then enable, the level-1 data cache (Cortex-M7). */
static inline void tk_armv7m_enable_dcache(void)
{
    TK_SCB_CSSELR = 0;
    tk_barrier();
    const uint32_t geometry = TK_SCB_CCSIDR;
    const uint32_t last_set = (geometry >> 13) & 0x7FFFU;
    const uint32_t last_way = (geometry >> 3) & 0x3FFU;
    for (uint32_t set = 0; set <= last_set; set++) {
        for (uint32_t way = 0; way <= last_way; way++) {
            /* 32-byte lines: set number from bit 5; at most 4 ways: way number from bit 30 (DDI 0489F, DCISW). */
            TK_SCB_DCISW = (set << 5) | (way << 30);
        }
    }
    tk_barrier();
    TK_SCB_CCR |= TK_SCB_CCR_DC;
    tk_barrier();
}

#endif
