// Package oci tests the images as they are delivered: the layouts that Bazel has built, read from disk, without a
// container engine.
package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// budgetBytes is what an image may weigh as it travels.
const budgetBytes = 15 << 20

const user = "65532"

// entry is one of oci/images.bzl.
type entry struct {
	Name        string
	Port        int
	Description string
}

// descriptor, manifest and config are what the tests need of the OCI image
// specification, https://github.com/opencontainers/image-spec.
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

// image is one architecture's.
type image struct {
	entry
	platform   string
	config     config
	files      []tar.Header
	program    []byte
	compressed int64
}

// images reads those that TRICYCLE_TEST_IMAGES names: a copy of the list, with
// the layout NAME of each entry beside it.
func images(t *testing.T) []image {
	t.Helper()
	list := os.Getenv("TRICYCLE_TEST_IMAGES")
	if list == "" {
		t.Skip("TRICYCLE_TEST_IMAGES is not set: needs the images, which Bazel builds (bazel test //oci:all)")
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		t.Fatal(err)
	}
	var all []image
	for _, e := range entries {
		layout := filepath.Join(filepath.Dir(list), e.Name)
		var top, index manifest
		read(t, filepath.Join(layout, "index.json"), &top)
		if len(top.Manifests) != 1 {
			t.Fatalf("%s: %d indexes, want one", e.Name, len(top.Manifests))
		}
		read(t, blob(layout, top.Manifests[0]), &index)
		for _, d := range index.Manifests {
			all = append(all, readImage(t, layout, e, d))
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
	for _, l := range m.Layers {
		i.compressed += l.Size
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
			t.Errorf("%s %s: the layer's gzip header has the time %v, want none", e.Name, i.platform, z.ModTime)
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
			t.Errorf("%s: the index says %s, the image %s", i.Name, i.platform, own)
		}
	}
	for name, have := range platforms {
		if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(have, want) {
			t.Errorf("%s: %v, want %v", name, have, want)
		}
	}
}

// The list is exact: there is no shell, no package manager, and nothing of the
// embedded broker or store beside the program.
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

// Version and revision are labels of a release alone.
func TestLabels(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		want := map[string]string{
			"org.opencontainers.image.title":       "tricycle-" + i.Name,
			"org.opencontainers.image.description": i.Description,
			"org.opencontainers.image.source":      "https://github.com/tricycle-relay/tricycle",
			"org.opencontainers.image.licenses":    "Apache-2.0",
		}
		if !maps.Equal(i.config.Config.Labels, want) {
			t.Errorf("%v, want %v", i.config.Config.Labels, want)
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
				t.Error("it needs a loader, and the image has none: want a static program")
			}
		}
	})
}

// embedded are packages that only allinone may hold.
var embedded = []string{"github.com/twmb/franz-go/pkg/kfake", "modernc.org/sqlite"}

func TestNoEmbeddedBrokerOrStore(t *testing.T) {
	each(t, func(t *testing.T, i image) {
		for _, name := range embedded {
			if bytes.Contains(i.program, []byte(name+".")) {
				t.Errorf("it holds %s", name)
			}
		}
	})

	// The search finds them where they are.
	allinone, err := os.ReadFile(os.Getenv("TRICYCLE_TEST_ALLINONE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range embedded {
		if !bytes.Contains(allinone, []byte(name+".")) {
			t.Errorf("allinone: no trace of %s, so the images prove nothing", name)
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
