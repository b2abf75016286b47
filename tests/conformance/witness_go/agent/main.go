// Command agent is an ssh-agent with one Ed25519 key, for litewitness, which takes its key from one.
//
// It listens on the unix socket that it is given and prints the key's SHA256 fingerprint when it
// does. It ends with its standard input.
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func main() {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		log.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go agent.ServeAgent(keyring, conn)
		}
	}()
	fmt.Println(ssh.FingerprintSHA256(key))
	io.Copy(io.Discard, os.Stdin)
}
