# A CI runner on OCI Ampere A1: Ubuntu 22.04 for arm64, built on an instance that goes again. Packer makes the custom image;
# akidb-pipelines exports it as QCOW2 and archives it. Credentials come from ~/.oci/config, or from the instance (instance principals).

variable "runner" { type = string }
variable "week" { type = string }
variable "build_id" { type = string }
variable "base" { type = string }
variable "output" { type = string }
variable "playbook" { type = string }
variable "ansible_variables" { type = string }

variable "compartment_ocid" { type = string }
variable "subnet_ocid" { type = string }
variable "availability_domain" { type = string }

variable "ocpus" {
  type    = number
  default = 4
}

variable "memory_gb" {
  type    = number
  default = 24
}

source "oracle-oci" "runner" {
  base_image_ocid     = var.base
  compartment_ocid    = var.compartment_ocid
  subnet_ocid         = var.subnet_ocid
  availability_domain = var.availability_domain
  shape               = "VM.Standard.A1.Flex"
  ssh_username        = "ubuntu"
  image_name          = "akidb-runner-${var.runner}-${var.build_id}"

  shape_config {
    ocpus         = var.ocpus
    memory_in_gbs = var.memory_gb
  }

  tags = {
    "akidb.runner" = var.runner
    "akidb.build"  = var.build_id
    "akidb.week"   = var.week
  }

  instance_tags = {
    "akidb.runner" = var.runner
    "akidb.build"  = var.build_id
  }
}

build {
  sources = ["source.oracle-oci.runner"]

  provisioner "ansible" {
    playbook_file = var.playbook
    user          = "ubuntu"
    use_proxy     = false
    extra_arguments = [
      "--become",
      "-e", "ansible_python_interpreter=/usr/bin/python3",
      "-e", "@${var.ansible_variables}"
    ]
  }

  post-processor "manifest" {
    output = "${var.output}/packer-manifest.json"
  }
}
