/* Source of every register: RM0402, the register maps of FLASH, PWR and USART; bits by their names there. */
#include "tk_hal.h"

#include "tk_hal_stm32f4.h"

#define PWR_CR TK_REG(0x40007000U)
#define PWR_CR_VOS_SHIFT 14
#define PWR_CSR TK_REG(0x40007004U)
#define PWR_CSR_VOSRDY (1U << 14)

#define FLASH_ACR TK_REG(0x40023C00U)
#define FLASH_ACR_LATENCY_MASK 15U
#define FLASH_ACR_PRFTEN (1U << 8)
#define FLASH_ACR_ICEN (1U << 9)
#define FLASH_ACR_DCEN (1U << 10)

#define USART_SR TK_REG(TK_UART_BASE + 0x00U)
#define USART_SR_ORE (1U << 3)
#define USART_SR_RXNE (1U << 5)
#define USART_SR_TC (1U << 6)
#define USART_SR_TXE (1U << 7)
#define USART_DR TK_REG(TK_UART_BASE + 0x04U)
#define USART_BRR TK_REG(TK_UART_BASE + 0x08U)
#define USART_CR1 TK_REG(TK_UART_BASE + 0x0CU)
#define USART_CR1_RE (1U << 2)
#define USART_CR1_TE (1U << 3)
#define USART_CR1_UE (1U << 13)

static void start_clocks(void)
{
    tk_stm32_stop_pll();
    PWR_CR = (uint32_t)TK_PWR_VOS << PWR_CR_VOS_SHIFT;
    tk_stm32_start_pll((uint32_t)TK_PLL_R << 28);
    tk_stm32_wait_for(&PWR_CSR, PWR_CSR_VOSRDY, PWR_CSR_VOSRDY);

    /* The flash must be slow enough before the core becomes fast. */
    FLASH_ACR = (uint32_t)TK_FLASH_WAIT_STATES | FLASH_ACR_PRFTEN | FLASH_ACR_ICEN | FLASH_ACR_DCEN;
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
    start_clocks();
    open_uart();
    tk_armv7m_start_cycles();
}

size_t tk_hal_read(uint8_t *data, size_t max)
{
    size_t count = 0;
    while (count < max) {
        const uint32_t status = USART_SR;
        if ((status & (USART_SR_RXNE | USART_SR_ORE)) == 0U) {
            break;
        }
        /* Reading DR after SR also clears an overrun. A lost byte shows in the frame's checksum. */
        const uint8_t byte = (uint8_t)USART_DR;
        if ((status & USART_SR_RXNE) != 0U) {
            data[count++] = byte;
        }
    }
    return count;
}

void tk_hal_write(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        tk_stm32_wait_for(&USART_SR, USART_SR_TXE, USART_SR_TXE);
        USART_DR = data[i];
    }
}

void tk_hal_flush(void)
{
    tk_stm32_wait_for(&USART_SR, USART_SR_TC, USART_SR_TC);
}

uint32_t tk_hal_cycles(void)
{
    return TK_DWT_CYCCNT;
}

_Noreturn void tk_hal_reset(void)
{
    tk_armv7m_reset();
}
