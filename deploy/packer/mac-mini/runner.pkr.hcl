# A CI runner on a Mac mini: macOS Sonoma in a Tart virtual machine. Packer's Tart builder works on the Mac that it runs on, so
# `akidb-pipelines runners build mac-mini` is started there; archiving reads the machine's files over SSH from anywhere.
# Written from the documentation of Packer's Tart plugin and of Tart; never run by this project's tests, which have no Mac.

variable "runner" { type = string }
variable "week" { type = string }
variable "build_id" { type = string }
variable "base" { type = string }
variable "output" { type = string }
variable "playbook" { type = string }
variable "ansible_variables" { type = string }

source "tart-cli" "runner" {
  vm_base_name = var.base
  vm_name      = "akidb-runner-${var.runner}-${var.build_id}"
  cpu_count    = 6
  memory_gb    = 12
  disk_size_gb = 80
  headless     = true
  ssh_username = "admin"
  ssh_password = "admin"
  ssh_timeout  = "180s"
}

build {
  sources = ["source.tart-cli.runner"]

  provisioner "ansible" {
    playbook_file = var.playbook
    user          = "admin"
    extra_arguments = [
      "-e", "ansible_python_interpreter=/usr/bin/python3",
      "-e", "@${var.ansible_variables}"
    ]
  }

  post-processor "manifest" {
    output = "${var.output}/packer-manifest.json"
  }
}
