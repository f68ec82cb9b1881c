package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// init does the part of the program that was started again, if this is one, and ends with it: no package that is initialised later takes its
// time from a container's start (go.mod says why this one is early).
func init() {
	if len(os.Args) < 2 || os.Args[0] != again {
		return
	}
	switch os.Args[1] {
	case "enter":
		report := os.NewFile(4, "report")
		if err := enter(report); err != nil {
			fmt.Fprint(report, err)
		}
		os.Exit(128)
	case "join":
		code, err := join()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
}

func decode(task any) error {
	pipe := os.NewFile(3, "task")
	defer pipe.Close()
	return json.NewDecoder(pipe).Decode(task)
}

// enter becomes the container: namespaces, root, user, then its program.
func enter(report *os.File) error {
	runtime.LockOSThread()
	unix.CloseOnExec(4)
	unix.CloseOnExec(5)
	spec := &Spec{}
	if err := decode(spec); err != nil {
		return fmt.Errorf("cannot read what to run: %w", err)
	}
	if err := unix.Setns(5, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot join the pod's network namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("cannot set the host name %s: %w", spec.Hostname, err)
	}
	if err := root(spec); err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the working directory: %w", err)
	}
	if err := os.Chdir(spec.Dir); err != nil {
		return fmt.Errorf("cannot go to the working directory: %w", err)
	}
	if err := limit(&spec.User); err != nil {
		return err
	}
	if err := become(&spec.User); err != nil {
		return err
	}
	// A change of user clears the parent-death signal. The node may be gone since; then nobody reads the report any more.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("cannot tie the container to the node: %w", err)
	}
	polled := []unix.PollFd{{Fd: int32(report.Fd()), Events: unix.POLLOUT}}
	if _, err := unix.Poll(polled, 0); err == nil && polled[0].Revents&unix.POLLERR != 0 {
		os.Exit(137)
	}
	program, err := find(spec.Argv[0], spec.Env)
	if err != nil {
		return err
	}
	return fmt.Errorf("cannot execute %s: %w", program, unix.Exec(program, spec.Argv, spec.Env))
}

// root makes the container's file system and goes there for good.
func root(spec *Spec) error {
	mount := func(source, target, kind string, flags uintptr, options string) error {
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			return fmt.Errorf("cannot mount %s at %s: %w", source, target, err)
		}
		return nil
	}
	scratch, root := spec.Scratch, spec.Scratch+"/root"
	err := errors.Join(
		mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		mount("scratch", scratch, "tmpfs", 0, "mode=0755,size=1g"),
		os.Mkdir(scratch+"/upper", 0o755), os.Mkdir(scratch+"/work", 0o755), os.Mkdir(root, 0o755),
	)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", scratch, scratch)
	err = errors.Join(
		mount("root", root, "overlay", 0, options),
		mount("proc", root+"/proc", "proc", 0, ""),
		mount("sys", root+"/sys", "sysfs", unix.MS_RDONLY, ""),
		mount("/dev", root+"/dev", "", unix.MS_BIND|unix.MS_REC, ""),
	)
	if err != nil {
		return err
	}
	// Sources are opened outside, targets are made inside: a link in the image must lead to its own files, never to the machine's.
	sources := make([]*os.File, len(spec.Mounts))
	for at, it := range spec.Mounts {
		source, err := os.OpenFile(it.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("cannot mount at %s: %w", it.Target, err)
		}
		defer source.Close()
		sources[at] = source
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	for path, text := range spec.Files {
		// What stands there may be a link to elsewhere.
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("cannot write the container's %s: %w", path, err)
		}
	}
	for at, it := range spec.Mounts {
		if err := bind(sources[at], it); err != nil {
			return err
		}
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}

func bind(source *os.File, it Mount) error {
	info, err := source.Stat()
	if err != nil {
		return fmt.Errorf("cannot mount at %s: %w", it.Target, err)
	}
	if info.IsDir() {
		err = os.MkdirAll(it.Target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(it.Target), 0o755); err == nil {
		var file *os.File
		if file, err = os.OpenFile(it.Target, os.O_CREATE, 0o644); err == nil {
			file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("cannot make the mount point %s: %w", it.Target, err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), it.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("cannot mount at %s: %w", it.Target, err)
	}
	if it.ReadOnly {
		if err := unix.Mount("none", it.Target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("cannot make %s read-only: %w", it.Target, err)
		}
	}
	return nil
}

// limit takes away what the user may never have. The bounding set is enough: root's rights are cut to it by the execution that follows,
// another user's are lost by becoming it.
func limit(user *User) error {
	for number := range capabilities {
		if slices.Contains(user.Capabilities, number) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("cannot drop capability %s: %w", capabilities[number], err)
		}
	}
	if user.NoNewRights {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

func become(user *User) error {
	if err := syscall.Setgroups(user.Groups); err != nil {
		return fmt.Errorf("cannot set groups: %w", err)
	}
	if err := syscall.Setgid(user.GID); err != nil {
		return fmt.Errorf("cannot become group %d: %w", user.GID, err)
	}
	if err := syscall.Setuid(user.UID); err != nil {
		return fmt.Errorf("cannot become user %d: %w", user.UID, err)
	}
	return nil
}

// find looks a program up in the container's own PATH.
func find(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, entry := range env {
		if value, is := strings.CutPrefix(entry, "PATH="); is {
			path = value
		}
	}
	for _, folder := range filepath.SplitList(path) {
		file := filepath.Join(folder, program)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", program)
}

// join goes to a running container's namespaces and runs a command there.
func join() (int, error) {
	runtime.LockOSThread()
	task := &joinTask{}
	if err := decode(task); err != nil {
		return 126, fmt.Errorf("cannot read what to run: %w", err)
	}
	kinds := []string{"net", "uts", "ipc", "pid", "mnt"}
	var spaces []int
	for _, kind := range kinds {
		space, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", task.PID, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 126, fmt.Errorf("the container has ended: %w", err)
		}
		spaces = append(spaces, space)
	}
	// Only a thread with a file system view of its own may change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 126, err
	}
	for at, space := range spaces {
		if err := unix.Setns(space, 0); err != nil {
			return 126, fmt.Errorf("cannot join the container's %s namespace: %w", kinds[at], err)
		}
	}
	if err := limit(&task.User); err != nil {
		return 126, err
	}
	program, err := find(task.Argv[0], task.Env)
	if err != nil {
		return 127, err
	}
	groups := []uint32{}
	for _, group := range task.User.Groups {
		groups = append(groups, uint32(group))
	}
	command := &exec.Cmd{Path: program, Args: task.Argv, Env: task.Env, Dir: task.Dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	command.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(task.User.UID), Gid: uint32(task.User.GID), Groups: groups},
	}
	if err := command.Start(); err != nil {
		return 126, err
	}
	// No parent-death signal here: Go's check for a parent that died before it takes one in another process namespace for dead. The command
	// ends with the container, and when this process is told to end.
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		_ = command.Process.Kill()
	}()
	return code(command.Wait(), command), nil
}
