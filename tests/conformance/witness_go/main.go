// Command cosigned reads and makes cosigned checkpoints without any of Sealward's code.
//
//	cosigned policy POLICY FILE    torchwood: a checkpoint or a tlog-proof satisfies a tlog-policy
//	cosigned formats VKEYS FILE    transparency-dev/formats: each key (one a line) has cosigned it
//	cosigned make SKEYS FILE       transparency-dev/formats: prints the checkpoint, cosigned
//
// Of a tlog-proof the record is its extra data after 32 bytes of salt, as Sealward has it. SKEYS are
// signer keys of golang.org/x/mod/sumdb/note, types 4 and 6, one a line.
//
// The exit status is 0 if everything holds, 1 if something does not, 2 for wrong usage.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/torchwood"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const saltSize = 32

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: cosigned policy|formats|make KEYS FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

func run(what, keys, file string) error {
	with, err := os.ReadFile(keys)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	switch what {
	case "policy":
		return underPolicy(with, data)
	case "formats":
		return byKeys(strings.Fields(string(with)), data)
	case "make":
		return cosign(strings.Fields(string(with)), data)
	}
	return errors.New("unknown command")
}

func underPolicy(text, data []byte) error {
	policy, err := torchwood.ParsePolicy(text)
	if err != nil {
		return err
	}
	if bytes.HasPrefix(data, []byte("c2sp.org/tlog-proof@v1\n")) {
		extra, err := torchwood.ProofExtraData(data)
		if err != nil || len(extra) < saltSize {
			return errors.New("the proof carries no entry")
		}
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(extra[saltSize:]), data); err != nil {
			return err
		}
		fmt.Println("proof")
		return nil
	}
	checkpoint, opened, err := torchwood.VerifyCheckpoint(data, policy)
	if err != nil {
		return err
	}
	fmt.Printf("%s %d\n", checkpoint.Origin, checkpoint.N)
	for _, sig := range opened.Sigs {
		fmt.Println(sig.Name)
	}
	return nil
}

func byKeys(vkeys []string, data []byte) error {
	for _, vkey := range vkeys {
		verifier, err := fnote.NewVerifierForCosignatureV1(vkey)
		if err != nil {
			return err
		}
		opened, err := note.Open(data, note.VerifierList(verifier))
		if err != nil {
			return err
		}
		at, err := fnote.CoSigV1Timestamp(opened.Sigs[0])
		if err != nil {
			return err
		}
		fmt.Printf("%s %d\n", opened.Sigs[0].Name, at.Unix())
	}
	return nil
}

func cosign(skeys []string, data []byte) error {
	signed, err := note.Open(data, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		signed = unverified.Note
	} else if err != nil {
		return err
	}
	var signers []note.Signer
	for _, skey := range skeys {
		signer, err := fnote.NewSignerForCosignatureV1(skey)
		if err != nil {
			return err
		}
		signers = append(signers, signer)
	}
	out, err := note.Sign(signed, signers...)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}
