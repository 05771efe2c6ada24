// Package oci tests the images as they are delivered. It reads the layouts that Bazel has built from disk, without a
// container engine.
package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// budgetBytes is the limit for the compressed size of an image.
const budgetBytes = 15 << 20

const user = "65532"

// entry is an image of oci/images.bzl.
type entry struct {
	Name        string
	Port        int
	Description string
}

// descriptor, manifest and config are the parts of the OCI image specification
// that the tests need, https://github.com/opencontainers/image-spec.
type descriptor struct {
	Digest   string
	Size     int64
	Platform struct{ OS, Architecture string }
}

type manifest struct {
	Manifests []descriptor
	Config    descriptor
	Layers    []descriptor
}

type config struct {
	Created      time.Time
	OS           string
	Architecture string
	Config       struct {
		User         string
		Entrypoint   []string
		Cmd          []string
		Env          []string
		WorkingDir   string
		ExposedPorts map[string]struct{}
		Labels       map[string]string
	}
	History []struct{ Created time.Time }
}

// image is the image of one architecture.
type image struct {
	entry
	platform   string
	release    string // its version, "" for a build that is none
	config     config
	blobs      []string // paths of the configuration and of the layers
	files      []tar.Header
	program    []byte
	compressed int64
}

func (i image) version() string { return cmp.Or(i.release, "0.0.0-dev") }

// all are the images that images has read.
var all []image

// images reads the list in the file TRICYCLE_TEST_IMAGES, and the layouts and
// tags in the same directory.
func images(t *testing.T) []image {
	t.Helper()
	if all != nil {
		return all
	}
	list := os.Getenv("TRICYCLE_TEST_IMAGES")
	if list == "" {
		t.Skip("TRICYCLE_TEST_IMAGES: must be the list of images that Bazel builds (bazel test //oci:all)")
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		layout := filepath.Join(filepath.Dir(list), e.Name)
		tag, err := os.ReadFile(layout + "_release_tag.txt")
		if err != nil {
			t.Fatal(err)
		}
		var top, index manifest
		read(t, filepath.Join(layout, "index.json"), &top)
		if len(top.Manifests) != 1 {
			t.Fatalf("%s: %d indexes, want one", e.Name, len(top.Manifests))
		}
		read(t, blob(layout, top.Manifests[0]), &index)
		for _, d := range index.Manifests {
			i := readImage(t, layout, e, d)
			i.release = strings.TrimSpace(string(tag))
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		t.Fatal("no images")
	}
	return all
}

func blob(layout string, d descriptor) string {
	return filepath.Join(layout, "blobs", strings.Replace(d.Digest, ":", "/", 1))
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readImage(t *testing.T, layout string, e entry, d descriptor) image {
	t.Helper()
	i := image{entry: e, platform: d.Platform.OS + "/" + d.Platform.Architecture}
	var m manifest
	read(t, blob(layout, d), &m)
	read(t, blob(layout, m.Config), &i.config)
	i.compressed = d.Size + m.Config.Size
	i.blobs = append(i.blobs, blob(layout, m.Config))
	for _, l := range m.Layers {
		i.compressed += l.Size
		i.blobs = append(i.blobs, blob(layout, l))
		f, err := os.Open(blob(layout, l))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		if !z.ModTime.IsZero() {
			t.Errorf("%s %s: the gzip header of the layer has the time %v, want none", e.Name, i.platform, z.ModTime)
		}
		for layer := tar.NewReader(z); ; {
			h, err := layer.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			i.files = append(i.files, *h)
			if h.Name == e.Name {
				if i.program, err = io.ReadAll(layer); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return i
}

func each(t *testing.T, test func(t *testing.T, i image)) {
	for _, i := range images(t) {
		t.Run(i.Name+" "+i.platform, func(t *testing.T) { test(t, i) })
	}
}

func TestEveryImageHasBothPlatforms(t *testing.T) {
	platforms := map[string][]string{}
	for _, i := range images(t) {
		platforms[i.Name] = append(platforms[i.Name], i.platform)
		if own := i.config.OS + "/" + i.config.Architecture; own != i.platform {
			t.Errorf("%s: got %s in the image, want %s of the index", i.Name, own, i.platform)
		}
	}
	for name, have := range platforms {
		if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(have, want) {
			t.Errorf("%s: %v, want %v", name, have, want)
		}
	}
}

// The list of files is exact: there is no shell, no package manager, no embedded
// broker and no embedded store.
func TestFiles(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		var have []string
		for _, h := range i.files {
			have = append(have, fmt.Sprintf("%s %c %04o %d:%d", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid))
		}
		want := []string{
			i.Name + " 0 0755 0:0",
			"var/ 5 0755 0:0",
			"var/log/ 5 0755 0:0",
			"var/log/tricycle/ 5 0755 " + user + ":" + user,
		}
		if !slices.Equal(have, want) {
			t.Errorf("it holds\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestConfig(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		c := i.config.Config
		port := fmt.Sprintf("%d/tcp", i.Port)
		if c.User != user+":"+user || !slices.Equal(c.Entrypoint, []string{"/" + i.Name}) || len(c.Cmd) > 0 || len(c.Env) > 0 || c.WorkingDir != "" ||
			!slices.Equal(slices.Collect(maps.Keys(c.ExposedPorts)), []string{port}) {
			t.Errorf("%+v, want user %s:%s, entrypoint /%s, port %s, nothing else", c, user, user, i.Name, port)
		}
	})
}

// Only a release has the labels version and revision.
func TestLabels(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		labels := maps.Clone(i.config.Config.Labels)
		if i.release != "" {
			const revision = "org.opencontainers.image.revision"
			if !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(labels[revision]) {
				t.Errorf("%s is %q, want a commit", revision, labels[revision])
			}
			delete(labels, revision)
		}
		want := map[string]string{
			"org.opencontainers.image.title":       "tricycle-" + i.Name,
			"org.opencontainers.image.description": i.Description,
			"org.opencontainers.image.source":      "https://github.com/tricycle-relay/tricycle",
			"org.opencontainers.image.licenses":    "Apache-2.0",
		}
		if i.release != "" {
			want["org.opencontainers.image.version"] = i.release
		}
		if !maps.Equal(labels, want) {
			t.Errorf("%v, want %v", labels, want)
		}
	})
}

func TestTimesAreConstant(t *testing.T) {
	epoch := time.Unix(0, 0)
	each(t, func(t *testing.T, i image) {
		if !i.config.Created.Equal(epoch) {
			t.Errorf("created %v, want %v", i.config.Created, epoch)
		}
		for _, h := range i.config.History {
			if !h.Created.Equal(epoch) {
				t.Errorf("a layer's history: %v, want %v", h.Created, epoch)
			}
		}
		for _, h := range i.files {
			if !h.ModTime.Equal(epoch) {
				t.Errorf("%s: %v, want %v", h.Name, h.ModTime, epoch)
			}
		}
	})
}

func TestPrograms(t *testing.T) {
	machines := map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}
	each(t, func(t *testing.T, i image) {
		program, err := elf.NewFile(bytes.NewReader(i.program))
		if err != nil {
			t.Fatal(err)
		}
		if program.Machine != machines[i.platform] {
			t.Errorf("it is for %v, want %v", program.Machine, machines[i.platform])
		}
		for _, segment := range program.Progs {
			if segment.Type == elf.PT_INTERP {
				t.Error("the program needs a loader, want a static program")
			}
		}
	})
}

// TestVersion checks that an image with tag 1.2.3 reports version 1.2.3.
func TestVersion(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		// The programs of both architectures contain the text, but only one of them runs here.
		if !bytes.Contains(i.program, []byte(i.version())) {
			t.Errorf("the program does not contain the version %s", i.version())
		}
		if i.platform != "linux/"+runtime.GOARCH {
			return
		}
		program := filepath.Join(t.TempDir(), i.Name)
		if err := os.WriteFile(program, i.program, 0o700); err != nil {
			t.Fatal(err)
		}
		said, err := exec.Command(program, "-version").CombinedOutput()
		if want := fmt.Sprintf("%s %s (", i.Name, i.version()); err != nil || !strings.HasPrefix(string(said), want) {
			t.Errorf("%v, %q, want %s", err, said, want)
		}
	})
}

// embedded are packages that only allinone may contain.
var embedded = []string{"github.com/twmb/franz-go/pkg/kfake", "modernc.org/sqlite"}

func TestNoEmbeddedBrokerOrStore(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		for _, name := range embedded {
			if bytes.Contains(i.program, []byte(name+".")) {
				t.Errorf("the program contains %s", name)
			}
		}
	})

	// The search finds them in allinone.
	allinone, err := os.ReadFile(os.Getenv("TRICYCLE_TEST_ALLINONE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range embedded {
		if !bytes.Contains(allinone, []byte(name+".")) {
			t.Errorf("allinone does not contain %s, so this test proves nothing", name)
		}
	}
}

func TestSize(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		t.Logf("%d bytes", i.compressed)
		if i.compressed > budgetBytes {
			t.Errorf("%d bytes, want at most %d", i.compressed, budgetBytes)
		}
	})
}
