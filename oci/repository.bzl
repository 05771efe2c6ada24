"""The setting --//oci:repository, and the files that pass it to load and push."""

load("@bazel_skylib//rules:common_settings.bzl", "BuildSettingInfo")

def _repository_file_impl(ctx):
    repository = ctx.attr._repository[BuildSettingInfo].value
    host, _, namespace = repository.partition("/")
    for wrong, why in {
        "it is empty": not repository,
        "it has no namespace": not namespace or namespace.endswith("/"),
        "it has a tag or a digest": ":" in namespace or "@" in repository,
        "it has capital letters": repository != repository.lower(),
        "it has a space": " " in repository,
    }.items():
        if why:
            fail("--//oci:repository: must be HOST/NAMESPACE such as docker.io/NAMESPACE or 127.0.0.1:5000/NAMESPACE, got %s: %s" % (repository, wrong))
    ctx.actions.write(ctx.outputs.out, repository + "/" + ctx.attr.image + ctx.attr.suffix)

_repository_file = rule(
    implementation = _repository_file_impl,
    doc = "Writes a file with the name of an image in the configured repository.",
    attrs = {
        "image": attr.string(mandatory = True),
        "out": attr.output(mandatory = True),
        "suffix": attr.string(),
        "_repository": attr.label(default = "//oci:repository"),
    },
)

def repository_file(name, **kwargs):
    _repository_file(name = name, out = name + ".txt", **kwargs)
