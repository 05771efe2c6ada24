{
  description = "tricycle: a development shell, and commands for the environment";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
      ];
      eachSystem = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});

      # Bazelisk starts the version in .bazelversion; nixpkgs has another one.
      bazel =
        pkgs:
        pkgs.writeShellScriptBin "bazel" ''
          exec ${pkgs.bazelisk}/bin/bazelisk "$@"
        '';

      # The minimum to build and test.
      least = pkgs: [
        pkgs.go_1_26
        (bazel pkgs)
        pkgs.jq
        pkgs.shellcheck
      ];

      shell =
        pkgs: packages:
        pkgs.mkShellNoCC {
          inherit packages;
          # Use the shell's Go; do not download a newer toolchain for go.mod.
          GOTOOLCHAIN = "local";
          # Nix points these at a directory of this shell, which the Bazel server outlives.
          shellHook = ''
            unset TMPDIR TMP TEMP TEMPDIR
            if [[ $- == *i* ]]; then
              echo "tricycle: go test ./..., bazel test //..., nix run .#up; docs/nix.md has the rest" >&2
            fi
          '';
        };

      # An app has --help, changes to the root of its clone, and passes its arguments on.
      program =
        pkgs: name:
        {
          description,
          inputs,
          text,
        }:
        pkgs.writeShellApplication {
          inherit name;
          meta.description = description;
          runtimeInputs = inputs;
          text = ''
            if [ "''${1:-}" = --help ]; then
              echo "nix run .#${name} [-- ARGUMENT...]: ${description}"
              exit
            fi
            here=$PWD
            until [[ -e go.mod && $(<go.mod) == "module github.com/tricycle-relay/tricycle"* ]]; do
              if [ "$PWD" = / ]; then
                echo "$here: must be in a clone of tricycle" >&2
                exit 1
              fi
              cd ..
            done
            ${text}
          '';
        };

      programs =
        pkgs:
        builtins.mapAttrs (program pkgs) {
          up = {
            description = "builds the images unless TRICYCLE_VERSION names a release, then runs docker compose up -d --wait ARGUMENT...";
            inputs = [
              (bazel pkgs)
              pkgs.coreutils
              pkgs.docker-client
            ];
            text = ''
              if [ "''${TRICYCLE_VERSION:-0.0.0-dev}" = 0.0.0-dev ]; then
                bazel run ''${TRICYCLE_REPOSITORY:+"--//oci:repository=$TRICYCLE_REPOSITORY"} //:load
              fi
              exec docker compose up -d --wait "$@"
            '';
          };
          down = {
            description = "docker compose down ARGUMENT...; the data remain, -v destroys them";
            inputs = [ pkgs.docker-client ];
            text = ''
              exec docker compose down "$@"
            '';
          };
          inspect = {
            description = "the MariaDB client with these arguments, whether anything else runs or not";
            inputs = [ pkgs.docker-client ];
            text = ''
              exec docker compose run --rm inspect "$@"
            '';
          };
          test = {
            description = "bazel test //... ARGUMENT...";
            inputs = [ (bazel pkgs) ];
            text = ''
              exec bazel test //... "$@"
            '';
          };
          push = {
            description = "bazel run //:push ARGUMENT...; needs a docker login";
            inputs = [ (bazel pkgs) ];
            text = ''
              exec bazel run //:push "$@"
            '';
          };
          fmt = {
            description = "formats the Go and the Nix files under these paths, or in the whole clone";
            inputs = [
              pkgs.findutils
              pkgs.go_1_26
              pkgs.nixfmt
            ];
            text = ''
              [ $# = 0 ] || cd "$here"
              find "''${@:-.}" -name '*.go' -exec gofmt -l -w {} +
              find "''${@:-.}" -name '*.nix' -exec nixfmt {} +
            '';
          };
        };

      check =
        pkgs: name: inputs: text:
        pkgs.runCommand name { nativeBuildInputs = inputs; } ''
          export HOME=$TMPDIR
          cd ${self}
          ${text}
          touch $out
        '';
    in
    {
      devShells = eachSystem (pkgs: {
        default = shell pkgs (
          least pkgs
          ++ [
            pkgs.bazel-buildtools
            pkgs.bazel-gazelle
            pkgs.docker-client
            pkgs.docker-compose
            pkgs.go-containerregistry # crane
            pkgs.golangci-lint
            pkgs.gopls
            pkgs.kcat
            pkgs.mariadb.client
            pkgs.yamllint
          ]
        );
        ci = shell pkgs (least pkgs);
      });

      apps = eachSystem (
        pkgs:
        builtins.mapAttrs (name: package: {
          type = "app";
          meta = { inherit (package.meta) description; };
          program = "${package}/bin/${name}";
        }) (programs pkgs)
      );

      formatter = eachSystem (pkgs: (programs pkgs).fmt);

      checks = eachSystem (pkgs: {
        formatting = check pkgs "formatting" [ pkgs.go_1_26 pkgs.nixfmt ] ''
          unformatted=$(gofmt -l .)
          [ -z "$unformatted" ] || { echo "not formatted: $unformatted"; exit 1; }
          find . -name '*.nix' -exec nixfmt --check {} +
        '';
        # The apps are scripts too; writeShellApplication checks each when it is built.
        scripts = check pkgs "scripts" ([ pkgs.shellcheck ] ++ builtins.attrValues (programs pkgs)) ''
          bash .ci/scripts
        '';
        versions = check pkgs "versions" [ pkgs.go_1_26 ] ''
          export GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=0
          go test -run '^TestVersions$' ./lib
        '';
      });
    };
}
