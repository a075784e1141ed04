/* What the HALs of the STM32 families share: the clock tree of F4 and F7 (RCC), and the pins of the UART (GPIO).
 *
 * Source: RM0385 and RM0402, the register maps of RCC and GPIO, which are the same in both; bits by their names there. The TK_
 * macros come from the board file through tk_board.h; the header of the HAL explains and checks them.
 */
#ifndef TK_STM32_H
#define TK_STM32_H

#include <stdint.h>

#include "tk_armv7m.h"
#include "tk_board.h"

#define RCC_CR TK_REG(0x40023800U)
#define RCC_CR_HSION (1U << 0)
#define RCC_CR_HSIRDY (1U << 1)
#define RCC_CR_HSEON (1U << 16)
#define RCC_CR_HSERDY (1U << 17)
#define RCC_CR_HSEBYP (1U << 18)
#define RCC_CR_PLLON (1U << 24)
#define RCC_CR_PLLRDY (1U << 25)
#define RCC_PLLCFGR TK_REG(0x40023804U)
#define RCC_PLLCFGR_SRC_HSE (1U << 22)
#define RCC_CFGR TK_REG(0x40023808U)
#define RCC_CFGR_SW_MASK 3U
#define RCC_CFGR_SW_HSI 0U
#define RCC_CFGR_SW_PLL 2U
#define RCC_AHB1ENR TK_REG(0x40023830U)
#define RCC_APB1ENR TK_REG(0x40023840U)
#define RCC_APB1ENR_PWREN (1U << 28)

#define GPIO_MODER TK_REG(TK_UART_GPIO_BASE + 0x00U)
#define GPIO_PUPDR TK_REG(TK_UART_GPIO_BASE + 0x0CU)
#define GPIO_AFR(pin) TK_REG(TK_UART_GPIO_BASE + 0x20U + 4U * ((pin) / 8U))
#define GPIO_MODE_ALTERNATE 2U
#define GPIO_PULL_UP 1U

/* Block until the bits `mask` of a register have `value`: for ever when the clock that is waited for is absent. Then there is
 * no UART to complain through, and the host reports that READY did not come. */
static inline void tk_stm32_wait_for(volatile const uint32_t *address, uint32_t mask, uint32_t value)
{
    while ((*address & mask) != value) {
    }
}

/* Fall back to the internal oscillator and stop the PLL, so that start-up also works after a bootloader has set the clocks;
 * then open the power controller's registers. */
static inline void tk_stm32_stop_pll(void)
{
    RCC_CR |= RCC_CR_HSION;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY);
    RCC_CFGR = RCC_CFGR_SW_HSI;
    tk_stm32_wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_HSI << 2);
    RCC_CR &= ~RCC_CR_PLLON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_PLLRDY, 0);
    RCC_APB1ENR |= RCC_APB1ENR_PWREN;
    (void)RCC_APB1ENR; /* two bus cycles until the peripheral answers */
}

/* Start the external oscillator and the PLL from it; `more` are bits of PLLCFGR that only one family has. */
static inline void tk_stm32_start_pll(uint32_t more)
{
    RCC_CR &= ~(RCC_CR_HSEON | RCC_CR_HSEBYP);
    if (TK_HSE_BYPASS != 0) {
        RCC_CR |= RCC_CR_HSEBYP;
    }
    RCC_CR |= RCC_CR_HSEON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_HSERDY, RCC_CR_HSERDY);
    RCC_PLLCFGR = (uint32_t)TK_PLL_M | ((uint32_t)TK_PLL_N << 6) | ((TK_PLL_P / 2U - 1U) << 16) | RCC_PLLCFGR_SRC_HSE |
                  ((uint32_t)TK_PLL_Q << 24) | more;
    RCC_CR |= RCC_CR_PLLON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY);
}

/* RCC's code for an APB divider of 1, 2, 4, 8 or 16. */
static inline uint32_t tk_stm32_apb_code(uint32_t divider)
{
    return divider == 1U ? 0U : divider == 2U ? 4U : divider == 4U ? 5U : divider == 8U ? 6U : 7U;
}

/* Run the core from the PLL. The flash must have been made slow enough before. */
static inline void tk_stm32_use_pll(void)
{
    RCC_CFGR = (tk_stm32_apb_code(TK_APB1_DIV) << 10) | (tk_stm32_apb_code(TK_APB2_DIV) << 13);
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    tk_stm32_wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_PLL << 2);
}

static inline void tk_stm32_open_pin(uint32_t pin, uint32_t function)
{
    GPIO_AFR(pin) = (GPIO_AFR(pin) & ~(15U << (4U * (pin % 8U)))) | (function << (4U * (pin % 8U)));
    GPIO_PUPDR = (GPIO_PUPDR & ~(3U << (2U * pin))) | (GPIO_PULL_UP << (2U * pin));
    GPIO_MODER = (GPIO_MODER & ~(3U << (2U * pin))) | (GPIO_MODE_ALTERNATE << (2U * pin));
}

/* Give the UART and its pins their clocks, and the pins to the UART. */
static inline void tk_stm32_open_uart_pins(void)
{
    RCC_AHB1ENR |= 1U << TK_UART_GPIO_ENABLE_BIT;
    TK_REG(TK_UART_ENABLE_ADDRESS) |= 1U << TK_UART_ENABLE_BIT;
    (void)TK_REG(TK_UART_ENABLE_ADDRESS);
    tk_stm32_open_pin(TK_UART_TX_PIN, TK_UART_TX_AF);
    tk_stm32_open_pin(TK_UART_RX_PIN, TK_UART_RX_AF);
}

#endif
