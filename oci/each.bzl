"""A rule that runs several programs with `bazel run`, one after the other."""

load("@bazel_skylib//lib:shell.bzl", "shell")

def _each_impl(ctx):
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    commands = [target[DefaultInfo].files_to_run.executable for target in ctx.attr.targets]
    ctx.actions.write(
        script,
        "\n".join([
            "#!/usr/bin/env bash",
            "set -euo pipefail",
            'export RUNFILES_DIR="${RUNFILES_DIR:-$0.runfiles}"',
            "trap %s ERR" % shell.quote("printf %%s %s >&2" % shell.quote(ctx.attr.help)),
        ] + [
            '"$RUNFILES_DIR/%s/%s" "$@"' % (ctx.workspace_name, command.short_path)
            for command in commands
        ]) + "\n",
        is_executable = True,
    )
    runfiles = ctx.runfiles(commands).merge_all([
        target[DefaultInfo].default_runfiles
        for target in ctx.attr.targets + [ctx.attr._runfiles]
    ])
    return [DefaultInfo(executable = script, runfiles = runfiles)]

each = rule(
    implementation = _each_impl,
    doc = "Runs the targets in order, each with all arguments, and stops at the first failure.",
    attrs = {
        "help": attr.string(doc = "advice that is printed after a failure"),
        "targets": attr.label_list(mandatory = True, allow_empty = False, allow_files = True, cfg = "target"),
        "_runfiles": attr.label(default = "@bazel_tools//tools/bash/runfiles"),  # the scripts of the targets locate files with it
    },
    executable = True,
)
