package node

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Image is what an image name stands for: a program of this machine instead of layers of files.
type Image struct {
	// Entrypoint and Command are the image's ENTRYPOINT and CMD: a container's `command` replaces both, its `args` the second.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Command    []string `json:"command,omitempty"`
	// Files of this machine by where the image has them.
	Files map[string]string `json:"files,omitempty"`
	Env   map[string]string `json:"env,omitempty"`
	// WorkingDir is `/` if nothing is said, User root.
	WorkingDir string `json:"workingDir,omitempty"`
	User       int64  `json:"user,omitempty"`
}

// lookUp finds an image in the table, by its whole reference, without its tag and digest, or without its registry too. The table is read each
// time: a test may add to it.
func lookUp(table, reference string) (*Image, error) {
	text, err := os.ReadFile(table)
	if err != nil {
		return nil, fmt.Errorf("cannot read the table of images: %w", err)
	}
	images := map[string]*Image{}
	if err := json.Unmarshal(text, &images); err != nil {
		return nil, fmt.Errorf("the table of images %s: %w", table, err)
	}
	for _, name := range []string{reference, repository(reference), path(repository(reference))} {
		if image := images[name]; image != nil {
			return image, nil
		}
	}
	return nil, fmt.Errorf("image %q is not in the table %s", reference, table)
}

// repository of a reference, without tag and digest.
func repository(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	return name
}

// path of a repository, without the registry it is in.
func path(repository string) string {
	registry, path, found := strings.Cut(repository, "/")
	if found && strings.ContainsAny(registry, ".:") {
		return path
	}
	return repository
}

// argv of a container: Kubernetes' rule for command and args over the image's own.
func (image *Image) argv(command, args []string) []string {
	switch {
	case len(command) > 0:
		return append(append([]string{}, command...), args...)
	case len(args) > 0:
		return append(append([]string{}, image.Entrypoint...), args...)
	default:
		return append(append([]string{}, image.Entrypoint...), image.Command...)
	}
}
