"""PlatformIO script: gives the linker what `build_flags` hands to the compiler only, and the image its name."""

Import("env")  # noqa: F821

machine = env.GetProjectOption("custom_machine_flags").split()  # noqa: F821
link = env.GetProjectOption("custom_link_flags").split()  # noqa: F821
env.Append(ASFLAGS=machine, CCFLAGS=machine, LINKFLAGS=[*machine, *link])  # noqa: F821
env.Replace(PROGNAME="firmware")  # noqa: F821
