"""The subcommands of `rsd`, one file each: arguments, progress, exit status. What they do lies in the rooms below."""
