/* Source of every register: RM0385, the register maps of FLASH, PWR and USART; bits by their names there. */
#include "tk_hal.h"

#include "tk_hal_stm32f7.h"

#define PWR_CR1 TK_REG(0x40007000U)
#define PWR_CR1_VOS_SHIFT 14
#define PWR_CR1_ODEN (1U << 16)
#define PWR_CR1_ODSWEN (1U << 17)
#define PWR_CSR1 TK_REG(0x40007004U)
#define PWR_CSR1_VOSRDY (1U << 14)
#define PWR_CSR1_ODRDY (1U << 16)
#define PWR_CSR1_ODSWRDY (1U << 17)

#define FLASH_ACR TK_REG(0x40023C00U)
#define FLASH_ACR_LATENCY_MASK 15U
#define FLASH_ACR_PRFTEN (1U << 8)
#define FLASH_ACR_ARTEN (1U << 9)

#define USART_CR1 TK_REG(TK_UART_BASE + 0x00U)
#define USART_CR1_UE (1U << 0)
#define USART_CR1_RE (1U << 2)
#define USART_CR1_TE (1U << 3)
#define USART_BRR TK_REG(TK_UART_BASE + 0x0CU)
#define USART_ISR TK_REG(TK_UART_BASE + 0x1CU)
#define USART_ISR_ORE (1U << 3)
#define USART_ISR_RXNE (1U << 5)
#define USART_ISR_TC (1U << 6)
#define USART_ISR_TXE (1U << 7)
#define USART_ICR TK_REG(TK_UART_BASE + 0x20U)
#define USART_ICR_ALL_ERRORS 0xFU /* parity, framing, noise, overrun */
#define USART_RDR TK_REG(TK_UART_BASE + 0x24U)
#define USART_TDR TK_REG(TK_UART_BASE + 0x28U)

static void start_clocks(void)
{
    tk_stm32_stop_pll();
    PWR_CR1 = (uint32_t)TK_PWR_VOS << PWR_CR1_VOS_SHIFT;
    tk_stm32_start_pll(0);
    tk_stm32_wait_for(&PWR_CSR1, PWR_CSR1_VOSRDY, PWR_CSR1_VOSRDY);
    if (TK_PWR_OVERDRIVE != 0) {
        PWR_CR1 |= PWR_CR1_ODEN;
        tk_stm32_wait_for(&PWR_CSR1, PWR_CSR1_ODRDY, PWR_CSR1_ODRDY);
        PWR_CR1 |= PWR_CR1_ODSWEN;
        tk_stm32_wait_for(&PWR_CSR1, PWR_CSR1_ODSWRDY, PWR_CSR1_ODSWRDY);
    }

    /* The flash must be slow enough before the core becomes fast. The ART accelerator serves accesses below 0x08000000 only
     * (ITCM bus); where the firmware runs, the level-1 caches do its work. */
    FLASH_ACR = (uint32_t)TK_FLASH_WAIT_STATES | FLASH_ACR_PRFTEN | FLASH_ACR_ARTEN;
    tk_stm32_wait_for(&FLASH_ACR, FLASH_ACR_LATENCY_MASK, TK_FLASH_WAIT_STATES);
    tk_stm32_use_pll();
}

static void open_uart(void)
{
    tk_stm32_open_uart_pins();
    USART_CR1 = 0;
    USART_BRR = (TK_UART_CLOCK_HZ + TK_BAUD / 2U) / TK_BAUD; /* 16 samples a bit */
    USART_CR1 = USART_CR1_TE | USART_CR1_RE | USART_CR1_UE;
}

void tk_hal_init(void)
{
    tk_armv7m_enable_icache();
    tk_armv7m_enable_dcache();
    start_clocks();
    open_uart();
    tk_armv7m_start_cycles();
}

size_t tk_hal_read(uint8_t *data, size_t max)
{
    size_t count = 0;
    while (count < max) {
        const uint32_t status = USART_ISR;
        if ((status & USART_ISR_ORE) != 0U) {
            /* A lost byte shows in the frame's checksum; the receiver must go on. */
            USART_ICR = USART_ICR_ALL_ERRORS;
        }
        if ((status & USART_ISR_RXNE) == 0U) {
            break;
        }
        data[count++] = (uint8_t)USART_RDR;
    }
    return count;
}

void tk_hal_write(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        tk_stm32_wait_for(&USART_ISR, USART_ISR_TXE, USART_ISR_TXE);
        USART_TDR = data[i];
    }
}

void tk_hal_flush(void)
{
    tk_stm32_wait_for(&USART_ISR, USART_ISR_TC, USART_ISR_TC);
}

uint32_t tk_hal_cycles(void)
{
    return TK_DWT_CYCCNT;
}

_Noreturn void tk_hal_reset(void)
{
    tk_armv7m_reset();
}
