# A CI runner as a Docker image. Works with Packer 1.6 (Debian's) and later; what only later ones understand stands in plugins.pkr.hcl.
# `akidb-pipelines runners build` sets every variable; the container is labelled, so that one left behind can be found and removed.

variable "runner" { type = string }
variable "week" { type = string }
variable "build_id" { type = string }
variable "base" { type = string }
variable "repository" { type = string }
variable "output" { type = string }
variable "playbook" { type = string }
variable "ansible_variables" { type = string }

variable "network" {
  type    = string
  default = "host"
}

variable "pull" {
  type    = bool
  default = false
}

source "docker" "runner" {
  image  = var.base
  commit = true
  pull   = var.pull

  run_command = [
    "-d", "-i", "-t",
    "--network=${var.network}",
    "--label=akidb.building=${var.runner}",
    "--entrypoint=/bin/sh", "--", "{{.Image}}"
  ]

  # Without the first two the committed image would start the shell that Packer started; what is started from it is not being built.
  changes = [
    "ENTRYPOINT []",
    "CMD [\"/bin/bash\"]",
    "ENV LANG=C.UTF-8",
    "LABEL akidb.building= akidb.runner=${var.runner} akidb.build=${var.build_id} akidb.week=${var.week}"
  ]
}

build {
  sources = ["source.docker.runner"]

  provisioner "ansible" {
    playbook_file = var.playbook
    user          = "root"
    # Packer 1.6 serves an old SSH: RSA by SHA-1, and scp's own protocol.
    extra_arguments = [
      "--ssh-extra-args=-o HostKeyAlgorithms=+ssh-rsa -o PubkeyAcceptedKeyTypes=+ssh-rsa",
      "--scp-extra-args=-O",
      "-e", "ansible_python_interpreter=/usr/bin/python3",
      "-e", "@${var.ansible_variables}"
    ]
  }

  post-processors {
    post-processor "docker-tag" {
      repository = var.repository
      tags       = [var.build_id]
    }
    post-processor "manifest" {
      output = "${var.output}/packer-manifest.json"
    }
  }
}
