// Command node is one program that is kube-scheduler or kubelet, chosen by its
// first argument. It stands apart from the control plane, so that only the test
// on a real node has to build it.
package main

import (
	"context"
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	name := os.Args[1]
	// Each program reads its flags from os.Args, so it must see its own name first.
	os.Args = os.Args[1:]
	switch name {
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: node kube-scheduler|kubelet [flags]")
	os.Exit(2)
}
