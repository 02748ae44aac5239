// Package clients tests that command-line tools and their libraries pull with the docker configs that the operator writes.
package clients

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/types"

	"ecr-credential-operator/tests/consumers/stage"
)

const hub = "https://index.docker.io/v1/"

// pull pulls the chart `charts/app:1.0.0` of a host with the docker config in a folder.
type pull func(t *testing.T, host, folder string) error

// consumers are all that read a docker config file.
var consumers = map[string]pull{
	"crane": func(t *testing.T, host, folder string) error {
		t.Setenv("DOCKER_CONFIG", folder)
		_, err := crane.Manifest(host+"/charts/app:1.0.0", crane.Insecure)
		return err
	},
	"skopeo": func(t *testing.T, host, folder string) error {
		reference, err := docker.ParseReference("//" + host + "/charts/app:1.0.0")
		if err != nil {
			return err
		}
		system := &types.SystemContext{
			AuthFilePath:                filepath.Join(folder, "config.json"),
			DockerInsecureSkipTLSVerify: types.OptionalBoolTrue,
		}
		source, err := reference.NewImageSource(context.Background(), system)
		if err != nil {
			return err
		}
		defer source.Close()
		_, _, err = source.GetManifest(context.Background(), nil)
		return err
	},
	"helm-v3": helm("helm-v3"),
	"helm-v4": helm("helm-v4"),
}

func helm(version string) pull {
	return func(t *testing.T, host, folder string) error {
		return runHelm(t, version, folder, "pull", "oci://"+host+"/charts/app", "--version", "1.0.0", "--destination", t.TempDir())
	}
}

func runHelm(t *testing.T, version, folder string, args ...string) error {
	program, err := exec.Command("sh", "../../tools/get.sh", version).Output()
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "--plain-http", "--registry-config", filepath.Join(folder, "config.json"))
	command := exec.Command(strings.TrimSpace(string(program)), args...)
	command.Env = append(os.Environ(), "HOME="+t.TempDir())
	return command.Run()
}

// producers are those that push as well. kaniko pushes by the library of crane.
var producers = map[string]pull{
	"crane": func(t *testing.T, host, folder string) error {
		t.Setenv("DOCKER_CONFIG", folder)
		image, err := crane.Image(map[string][]byte{"file": []byte("x")})
		if err != nil {
			return err
		}
		return crane.Push(image, host+"/built/app:1.0.0", crane.Insecure)
	},
	"helm-v3": helmPush("helm-v3"),
	"helm-v4": helmPush("helm-v4"),
}

func helmPush(version string) pull {
	return func(t *testing.T, host, folder string) error {
		chart := filepath.Join(t.TempDir(), "app-1.0.0.tgz")
		if err := os.WriteFile(chart, stage.Start(t, false).PushChart(t, "app", "1.0.0"), 0o600); err != nil {
			t.Fatal(err)
		}
		return runHelm(t, version, folder, "push", chart, "oci://"+host+"/built")
	}
}

// folder returns a folder with a docker config, as a mounted Secret is one.
func folder(t *testing.T, config []byte) string {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestADockerConfigFilePulls(t *testing.T) {
	for consumer, pull := range consumers {
		t.Run(consumer, func(t *testing.T) {
			registry := stage.Start(t, false)
			registry.PushChart(t, "charts/app", "1.0.0")
			registry.Admit("first")
			for _, format := range []struct{ name, key string }{
				{"DockerConfigFile", "config.json"}, {"DockerConfigJson", ".dockerconfigjson"},
			} {
				secret := stage.Write(t, format.name, registry.Host, "first")
				mounted := folder(t, []byte(secret.Data[format.key]))
				if err := pull(t, registry.Host, mounted); err != nil {
					t.Fatalf("%s: %v", format.name, err)
				}
			}
			if shown := registry.Passwords(); !slices.Equal(shown, []string{"first"}) {
				t.Fatalf("these were shown: %q", shown)
			}

			// The file follows a refresh, and the token before is refused.
			mounted := folder(t, stage.DockerConfig(t, map[string]string{registry.Host: "first"}))
			registry.Admit("second")
			if err := pull(t, registry.Host, mounted); err == nil {
				t.Fatal("an expired token was admitted")
			}
			refreshed := stage.Write(t, "DockerConfigFile", registry.Host, "second")
			if err := os.WriteFile(filepath.Join(mounted, "config.json"), []byte(refreshed.Data["config.json"]), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := pull(t, registry.Host, mounted); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestADockerConfigFilePushes(t *testing.T) {
	for producer, push := range producers {
		t.Run(producer, func(t *testing.T) {
			registry := stage.Start(t, false)
			registry.Admit("first")
			mounted := folder(t, []byte(stage.Write(t, "DockerConfigFile", registry.Host, "first").Data["config.json"]))
			if err := push(t, registry.Host, mounted); err != nil {
				t.Fatal(err)
			}
			t.Setenv("DOCKER_CONFIG", mounted)
			if _, err := crane.Manifest(registry.Host+"/built/app:1.0.0", crane.Insecure); err != nil {
				t.Fatalf("what was pushed is not there: %v", err)
			}
			registry.Admit("second")
			if err := push(t, registry.Host, mounted); err == nil {
				t.Fatal("an expired token was admitted")
			}
			if err := push(t, registry.Host, folder(t, stage.DockerConfig(t, nil))); err == nil {
				t.Fatal("a push without a token was admitted")
			}
		})
	}
}

func TestEntriesOfOtherHostsAreNotInTheWay(t *testing.T) {
	for consumer, pull := range consumers {
		t.Run(consumer, func(t *testing.T) {
			short, long := stage.StartPair(t, false)
			for _, registry := range []*stage.Registry{short, long} {
				registry.PushChart(t, "charts/app", "1.0.0")
			}
			short.Admit("of-short")
			long.Admit("of-long")
			both := map[string]string{short.Host: "of-short", long.Host: "of-long", hub: "of-hub"}
			merged := folder(t, stage.DockerConfig(t, both))
			for _, registry := range []*stage.Registry{short, long} {
				if err := pull(t, registry.Host, merged); err != nil {
					t.Fatalf("%s: %v", registry.Host, err)
				}
			}
			if shown := append(short.Passwords(), long.Passwords()...); !slices.Equal(shown, []string{"of-short", "of-long"}) {
				t.Fatalf("these were shown: %q", shown)
			}

			// A token of a host that is only a prefix is not shown.
			delete(both, long.Host)
			if err := pull(t, long.Host, folder(t, stage.DockerConfig(t, both))); err == nil {
				t.Fatal("a host without an entry was pulled from")
			}
			if shown := long.Passwords(); len(shown) > 0 {
				t.Fatalf("these were shown: %q", shown)
			}
		})
	}
}

func TestDockerHubsEntryIsFoundBesideOurs(t *testing.T) {
	config := stage.DockerConfig(t, map[string]string{hub: "of-hub", "111122223333.dkr.ecr.eu-west-1.amazonaws.com": "of-ecr"})
	t.Setenv("DOCKER_CONFIG", folder(t, config))
	for image, password := range map[string]string{
		"busybox": "of-hub", "docker.io/library/busybox": "of-hub", "111122223333.dkr.ecr.eu-west-1.amazonaws.com/app": "of-ecr",
		"ghcr.io/example/app": "",
	} {
		repository, err := name.NewRepository(image)
		if err != nil {
			t.Fatal(err)
		}
		authenticator, err := authn.DefaultKeychain.Resolve(repository)
		if err != nil {
			t.Fatal(err)
		}
		found, err := authenticator.Authorization()
		if err != nil || found.Password != password {
			t.Errorf("%s: %q is found, not %q (%v)", image, found.Password, password, err)
		}
	}
}

// Kargo compiles `repoURL` as a regular expression of Go and matches it against the URL of an image.
func TestTheExpressionForKargoMatchesOneHost(t *testing.T) {
	const host = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
	expression := regexp.MustCompile(stage.Write(t, "KargoImage", host, "x").Data["repoURL"])
	for url, matches := range map[string]bool{
		host + "/app":                true,
		host + "/team/app":           true,
		host:                         false,
		host + ".evil.example/app":   false,
		"evil.example/" + host + "/": false,
		"111122223333xdkr.ecr.eu-west-1.amazonaws.com/app": false,
	} {
		if expression.MatchString(url) != matches {
			t.Errorf("%s matches %s: %v", expression, url, !matches)
		}
	}
}
