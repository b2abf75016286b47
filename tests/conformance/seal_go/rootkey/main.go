// Command rootkey opens and makes age files with filippo.io/age, without Sealward's code.
//
//	rootkey open|seal SECRET < in > out
//
// SECRET is a file with an age identity or one line of passphrase, as the keystore's unlock secret.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

func keys(secret string) (age.Identity, age.Recipient, error) {
	if strings.HasPrefix(secret, "AGE-SECRET-KEY-1") {
		identity, err := age.ParseX25519Identity(secret)
		if err != nil {
			return nil, nil, err
		}
		return identity, identity.Recipient(), nil
	}
	identity, err := age.NewScryptIdentity(secret)
	if err != nil {
		return nil, nil, err
	}
	// Whoever wrote the file chose the work factor; 2^22 is the most that this accepts.
	identity.SetMaxWorkFactor(22)
	recipient, err := age.NewScryptRecipient(secret)
	return identity, recipient, err
}

func run(mode, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	identity, recipient, err := keys(strings.TrimRight(string(content), "\r\n"))
	if err != nil {
		return err
	}
	if mode == "open" {
		plain, err := age.Decrypt(os.Stdin, identity)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, plain)
		return err
	}
	sealed, err := age.Encrypt(os.Stdout, recipient)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sealed, os.Stdin); err != nil {
		return err
	}
	return sealed.Close()
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
