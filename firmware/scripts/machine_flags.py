"""PlatformIO script: gives the core's flags to compiler and linker alike (build_flags alone reach the compiler only)."""

Import("env")  # noqa: F821

flags = env.GetProjectOption("custom_machine_flags").split()  # noqa: F821
env.Append(ASFLAGS=flags, CCFLAGS=flags, LINKFLAGS=flags)  # noqa: F821
